"""Annotation files as their owners publish them -> examples. One module per family of layouts.

A reader yields an Example, or Rejected with the reason, for every annotation. What is wrong with
one annotation is told there; what is wrong with a whole file is a ValueError naming it.
"""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.readers.fields import Rejected
from ibtrain.data.readers.files import annotation_files
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

__all__ = ["FAMILIES", "Rejected", "annotation_files", "read"]


def read(raw: Path, split: str, entry: DatasetEntry) -> Iterator[Example | Rejected]:
    """Reads a split of a dataset with the reader that its entry names.

    Raises:
        ValueError: an unknown reader or split, a missing file, or a file that is not in the layout.
    """
    if entry.reader not in FAMILIES:
        raise ValueError(
            f"{entry.name}: no reader is called {entry.reader!r}; there are {', '.join(FAMILIES)}"
        )
    family = import_module(f"ibtrain.data.readers.{entry.reader}")
    options: tuple[str, ...] = getattr(family, "OPTIONS", ())
    for option in entry.reader_options:
        if option not in options:
            known = ", ".join(options) or "none"
            raise ValueError(
                f"{entry.name}: reader_options: {option!r} is no option of the reader "
                f"{entry.reader!r}; there are: {known}"
            )
    if entry.reader_options.get("generate", "question") != "question":
        raise ValueError(
            f"{entry.name}: reader_options: 'generate' may be 'question', nothing else"
        )
    found: Iterator[Example | Rejected] = family.read(raw, split, entry)
    return found
