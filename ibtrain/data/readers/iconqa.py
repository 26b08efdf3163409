"""IconQA's questions with texts to choose from: a folder for each, or LAVIS's list of them all.

Official: {split}/choose_txt/ID/{data.json,image.png}. LAVIS: annotations_{split}.json, which names
the same images {split}_ID.png.
"""

import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.readers.choices import multiple_choice
from ibtrain.data.readers.fields import FieldError, Rejected, Row, each
from ibtrain.data.readers.files import Images, annotation_files
from ibtrain.data.readers.streams import Unreadable, list_entries
from ibtrain.data.records import Example

MAXIMUM_QUESTION_BYTES = 1 << 20
MAXIMUM_QUESTIONS = 1 << 20


def read(raw: Path, split: str, entry: DatasetEntry) -> Iterator[Example | Rejected]:
    """One example per question, called by the name of its folder, in the order of the names."""
    (path,) = annotation_files(raw, split, entry)
    labelled = entry.splits[split].labelled
    if path.is_dir():
        for name in _folders(path):
            yield from _of_folder(path / name, entry, labelled)
        return
    images = Images(raw, entry)

    def make(row: Row) -> Iterable[Example]:
        image = images.named(row.text("image"))
        yield _example(row, row.identity("instance_id"), image, entry, labelled)

    yield from each(list_entries(path), make)


def _folders(path: Path) -> list[str]:
    """The names of the folders in `path`, the numbers among them by value."""
    try:
        with os.scandir(path) as found:
            names = [item.name for item in islice(found, MAXIMUM_QUESTIONS + 1) if item.is_dir()]
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if len(names) > MAXIMUM_QUESTIONS:
        raise ValueError(f"{path}: holds more than {MAXIMUM_QUESTIONS} questions")
    return sorted(names, key=lambda name: (len(name), name))


def _of_folder(folder: Path, entry: DatasetEntry, labelled: bool) -> Iterator[Example | Rejected]:
    # A folder's name need not be text; what is written of it must be.
    name = folder.name.encode("utf-8", "backslashreplace").decode()
    origin = f"{name}/data.json"

    def make(row: Row) -> Iterable[Example]:
        identity = Row({"id": folder.name}, origin).identity("id")
        image = folder / "image.png"
        if not image.is_file():
            raise FieldError(f"no image {image}")
        yield _example(row, identity, image, entry, labelled)

    for item in each([(origin, _content(folder / "data.json"))], make):
        yield Rejected(name, item.reason, item.bad) if isinstance(item, Rejected) else item


def _content(path: Path) -> object:
    """What the file of one question says; damage is for the Row to tell."""
    try:
        if not path.is_file() or path.stat().st_size > MAXIMUM_QUESTION_BYTES:
            return Unreadable(f"it is missing or larger than {MAXIMUM_QUESTION_BYTES} bytes")
        content: object = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        return Unreadable(f"not readable as JSON: {str(error)[:200]}")
    return content


def _example(row: Row, identity: str, image: Path, entry: DatasetEntry, labelled: bool) -> Example:
    slots, answers, details = multiple_choice(row, "answer", labelled=labelled)
    for key in ("grade", "label"):
        if row.has(key):
            details[key] = row.identity(key)
    return Example(
        entry.name,
        entry.task,
        identity,
        image,
        answers,
        form="multiple_choice",
        slots=slots,
        details=details,
    )
