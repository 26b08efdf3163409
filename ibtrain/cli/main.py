"""The command line: verbs that parse, call and print.

Human text goes to stdout, progress and warnings to stderr; with --json stdout is one JSON document.
Exit codes: 0 success, 1 the job failed, 2 the request was wrong, 3 interrupted after a saved
checkpoint.
"""

import argparse
import contextlib
import platform
import sys
from collections.abc import Sequence
from typing import Any

from ibtrain.cli.completion import complete
from ibtrain.cli.data import add_data
from ibtrain.cli.models import add_ask, add_compare, add_evaluate, add_export, add_rank
from ibtrain.cli.runs import add_check, add_plan, add_recipes, add_report, add_slurm, add_train
from ibtrain.cli.saying import FAILED, WRONG_REQUEST, complain, level_of, show_messages


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns its exit code."""
    parsed = _parse(arguments)
    show_messages(level_of(parsed))
    try:
        return int(parsed.run(parsed))
    except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        complain(error)
        return WRONG_REQUEST
    except (RuntimeError, OSError) as error:
        complain(error)
        return FAILED
    except KeyboardInterrupt:
        complain("stopped" + " before a checkpoint was saved" * (parsed.verb == "train"))
        return FAILED


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command; `key=value` may stand before options and after them."""
    parser = _parser()
    complete(parser)
    words = sys.argv[1:] if arguments is None else list(arguments)
    parsed, others = parser.parse_known_args(words)
    parsed.words = words
    overrides = [other for other in others if "=" in other and not other.startswith("-")]
    if any(other.startswith(("--local_rank", "--local-rank")) for other in others):
        parser.error(
            f"{others[0]} comes from the launcher: start with `deepspeed --no_local_rank` or with "
            "torchrun, which tell it by LOCAL_RANK"
        )
    if len(overrides) < len(others) or (others and "overrides" not in parsed):
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    if overrides:
        parsed.overrides = [*parsed.overrides, *overrides]
    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ibtrain", description="Instruction-tune InstructBLIP: data, training, evaluation."
    )
    parser.add_argument("--version", action=_Versions, nargs=0, help="of ibtrain and its libraries")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    add_recipes(verbs)
    add_check(verbs)
    add_data(verbs)
    add_plan(verbs)
    add_train(verbs)
    add_slurm(verbs)
    add_ask(verbs)
    add_rank(verbs)
    add_evaluate(verbs)
    add_compare(verbs)
    add_export(verbs)
    add_report(verbs)
    return parser


class _Versions(argparse.Action):
    """Prints what a report of a fault needs, and ends."""

    LIBRARIES = (
        "torch",
        "triton",
        "deepspeed",
        "transformers",
        "peft",
        "mosaicml-streaming",
        "numpy",
    )

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version

        from ibtrain import __version__

        lines = [f"ibtrain {__version__}", f"Python {platform.python_version()}"]
        for name in self.LIBRARIES:
            with contextlib.suppress(PackageNotFoundError):
                lines.append(f"{name} {version(name)}")
        print("\n".join(lines))
        parser.exit()
