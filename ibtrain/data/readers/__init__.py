"""Annotation files as their owners publish them -> examples. One module per family of layouts.

A reader yields an Example, or Rejected with the reason, for every annotation. What is wrong with
one annotation is told there; what is wrong with a whole file is a ValueError naming it.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.readers import aokvqa, caption, conversation, gqa, vqa
from ibtrain.data.readers.fields import Rejected
from ibtrain.data.readers.files import annotation_files
from ibtrain.data.records import Example

Reader = Callable[[Path, str, DatasetEntry], Iterator[Example | Rejected]]

_READERS: dict[str, Reader] = {
    "aokvqa": aokvqa.read,
    "caption": caption.read,
    "conversation": conversation.read,
    "gqa": gqa.read,
    "vqa": vqa.read,
}

__all__ = ["Rejected", "annotation_files", "read"]


def read(raw: Path, split: str, entry: DatasetEntry) -> Iterator[Example | Rejected]:
    """Reads a split of a dataset with the reader that its entry names.

    Raises:
        ValueError: an unknown split, a missing file, or a file that is not in the layout.
    """
    return _READERS[entry.reader](raw, split, entry)
