"""Annotation files as their owners publish them -> examples. One module per family of layouts.

A reader yields an Example, or Rejected with the reason, for every annotation. What is wrong with
one annotation is told there; what is wrong with a whole file is a ValueError naming it.
"""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.readers import files
from ibtrain.data.readers.fields import Rejected
from ibtrain.data.records import Example

FAMILIES = (
    "aokvqa",
    "caption",
    "caption_pairs",
    "conversation",
    "gqa",
    "hateful_memes",
    "iconqa",
    "ivqa",
    "nocaps",
    "ocr_vqa",
    "question_answer",
    "scienceqa",
    "textcaps",
    "textvqa",
    "video_qa",
    "visdial",
    "vizwiz",
    "vqa",
    "vsr",
)

__all__ = ["FAMILIES", "Rejected", "annotation_files", "read", "revision"]


def annotation_files(raw: Path, split: str, entry: DatasetEntry) -> tuple[Path, ...]:
    """The annotation files (or folders) of a split, that its reader will read.

    Raises:
        ValueError: an unknown reader, option or split, or no alternative is complete.
    """
    _family(entry)
    return files.annotation_files(raw, split, entry)


def read(raw: Path, split: str, entry: DatasetEntry) -> Iterator[Example | Rejected]:
    """Reads a split of a dataset with the reader that its entry names.

    Raises:
        ValueError: as annotation_files, or a file is not in the layout.
    """
    found: Iterator[Example | Rejected] = _family(entry).read(raw, split, entry)
    return found


def revision(entry: DatasetEntry) -> int:
    """The number of a reader's outcome: another one gives other examples of the same files."""
    number: int = getattr(_family(entry), "REVISION", 1)
    return number


def _family(entry: DatasetEntry) -> ModuleType:
    """The reader that an entry names, which takes the options that it names."""
    if entry.reader not in FAMILIES:
        raise ValueError(
            f"{entry.origin}: reader: there is no {entry.reader!r}; there are {', '.join(FAMILIES)}"
        )
    family = import_module(f"ibtrain.data.readers.{entry.reader}")
    options: tuple[str, ...] = getattr(family, "OPTIONS", ())
    for option in entry.reader_options:
        if option not in options:
            raise ValueError(
                f"{entry.origin}: reader_options: {option!r} is no option of {entry.reader!r}; "
                f"there are: {', '.join(options) or 'none'}"
            )
    if entry.reader_options.get("generate", "question") != "question":
        raise ValueError(
            f"{entry.origin}: reader_options.generate: may be 'question' and nothing else"
        )
    return family
