"""The directory of an export: it appears whole and proven, or not at all."""

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from glob import escape
from pathlib import Path
from typing import Any

import torch
import transformers

from ibtrain import __version__
from ibtrain.config import dump_recipe
from ibtrain.export.card import write_card
from ibtrain.files import sync, sync_tree
from ibtrain.pretrained.census import census
from ibtrain.pretrained.finding import EXPORT_REPORT, RECIPE_FILE
from ibtrain.pretrained.found import FoundModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportReport:
    """Where an export lies and what was proven of it (see `ibtrain.export.proof`)."""

    directory: Path
    proof: dict[str, Any]

    def sentence(self) -> str:
        """Both for people."""
        return (
            f"{self.directory} is written. Opened again, the largest difference of a logit is "
            f"{self.proof['max_abs_logit_error']:.1e} over {self.proof['answer_tokens']} answer "
            f"tokens (largest logit {self.proof['max_abs_logit']:.3g})."
        )


def check_out(out: Path) -> None:
    """Refuses an output that is there already, or that no directory can hold.

    Raises:
        ValueError: when it is, or something above it is a file.
    """
    if out.exists() or out.is_symlink():
        kind = "exists" if out.is_dir() else "is a file"
        raise ValueError(
            f"{out} {kind}, and an export replaces nothing; give the name of a new directory"
        )
    files = [parent for parent in out.parents if parent.is_file()]
    if files:
        raise ValueError(f"{out} cannot be made, for {files[0]} is a file; give another directory")


# How the tokenizers library and torch's archives tell that the file system has refused.
_OF_THE_DISK = ("os error", "inline_container")


@contextmanager
def failures_of_the_disk(path: Path) -> Iterator[None]:
    """Around what writes through a library that does not raise OSError at a full disk.

    Raises:
        OSError: naming `path`.
    """
    try:
        yield
    except Exception as error:
        if not any(sign in str(error) for sign in _OF_THE_DISK):
            raise
        first = str(error).strip().partition("\n")[0]
        raise OSError(f"{path} cannot be written ({first}); is the disk full?") from error


@contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """A temporary directory beside `out` that takes its place when the block ends well, and is
    removed when it does not.

    Raises:
        ValueError: when `out` is there already.
        OSError: when the file system cannot take it.
    """
    check_out(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f".{escape(out.name)}.writing-*"):
        logger.warning(
            "%s is left of an export that was killed (or still runs); if none does, remove it", left
        )
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.writing-", dir=out.parent))
    try:
        yield temporary
        _publish(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_report(
    found: FoundModel,
    directory: Path,
    kind: str,
    written: dict[str, Any],
    proof: dict[str, Any],
    evaluation: Path | None = None,
) -> None:
    """Writes export_report.json, and beside it the model card, and the recipe where there is one.

    Args:
        found: the model.
        directory: the export.
        kind: its format.
        written: numbers of shards, parameters and bytes, and what else is to be said.
        proof: what was proven.
        evaluation: a directory of `ibtrain evaluate`, whose scores stand in the card.

    Raises:
        ValueError: the evaluation cannot be read.
        OSError: the file system cannot take it.
    """
    if found.recipe is not None:
        (directory / RECIPE_FILE).write_text(dump_recipe(found.recipe), encoding="utf-8")
    shapes = {name: source.shapes()[name] for name, source in found.sources.items()}
    report = {
        "format": kind,
        "run": found.recipe.name if found.recipe is not None else None,
        "step": found.step,
        "language_model": found.config.text_config.model_type,
        **written,
        "base": found.base,
        "census": [asdict(row) for row in census(found.sources, shapes)],
        "ibtrain": __version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "proof": proof,
    }
    (directory / EXPORT_REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    write_card(found, directory, kind, proof, evaluation)


def _publish(temporary: Path, out: Path) -> None:
    """Makes every file durable, then renames the directory into its place."""
    temporary.chmod(0o755)
    sync_tree(temporary)
    check_out(out)
    temporary.rename(out)
    sync(out.parent)
