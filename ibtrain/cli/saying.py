"""What every verb says: its answer for people or as JSON, its messages, its exit code."""

import argparse
import json
import logging
import os
import sys
from typing import Any

SUCCESS, FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 3
"""Exit codes."""


def show_messages(level: int) -> None:
    """Our own messages to stderr, whatever the libraries have done to the root logger."""
    logger = logging.getLogger("ibtrain")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level)


def level_of(parsed: argparse.Namespace) -> int:
    """How much is told on stderr: by rank 0 all of it, with --quiet or --json warnings alone; with
    --verbose every rank tells what is for those who look for a fault.
    """
    if parsed.verbose:
        return logging.DEBUG
    return logging.INFO if rank() == 0 and not (parsed.json or parsed.quiet) else logging.WARNING


def shows_progress(parsed: argparse.Namespace) -> bool:
    """Whether bars are drawn on stderr: on a terminal that is to have them."""
    return sys.stderr.isatty() and not parsed.quiet


def rank() -> int:
    """This process' among those that a launcher started."""
    launched = any(name.endswith(("RANK", "_PROCID")) for name in os.environ)
    if not launched:
        return 0
    # What it imports takes seconds, which only those that were launched need.
    from ibtrain.distributed.launchers import rank_told

    return rank_told()


def complain(error: BaseException | str) -> None:
    """An error, to stderr; what all ranks found alike rank 0 tells alone."""
    if rank() and isinstance(error, BaseException) and _told_by_rank_zero(error):
        return
    where = f"[rank {rank()}] " if rank() else ""
    print(f"{where}ibtrain: {error}", file=sys.stderr)


def _told_by_rank_zero(error: BaseException) -> bool:
    # The other ranks of a training have loaded it.
    from ibtrain.distributed.ranks import is_shared

    return is_shared(error)


def say(parsed: argparse.Namespace, document: Any, text: str) -> int:
    """Prints the JSON document or the text for people."""
    print(json.dumps(document, indent=2) if parsed.json else text)
    return SUCCESS


def verb_of(verbs: Any, name: str, run: Any, help_text: str) -> argparse.ArgumentParser:
    """A verb that `run` does, with the options that all have."""
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=help_text, description=help_text)
    verb.add_argument("--json", action="store_true", help="print one JSON document")
    told = verb.add_mutually_exclusive_group()
    told.add_argument("-q", "--quiet", action="store_true", help="no progress, warnings alone")
    told.add_argument("-v", "--verbose", action="store_true", help="all messages, of every process")
    verb.set_defaults(run=run)
    return verb
