"""GQA's balanced questions: an object keyed by question id, or LAVIS's list of questions."""

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.readers.fields import FieldError, Rejected, Row, Unused, each
from ibtrain.data.readers.files import Images, annotation_files
from ibtrain.data.readers.streams import list_entries, object_entries, top_level
from ibtrain.data.records import Answer, Example

REVISION = 2  # what was written from the same files before differs


def read(raw: Path, split: str, entry: DatasetEntry) -> Iterator[Example | Rejected]:
    """One example per question; `details` has the detailed type of the question, if it is told."""
    (path,) = annotation_files(raw, split, entry)
    images = Images(raw, entry)
    labelled = entry.splits[split].labelled
    official = top_level(path) != "list"

    def make(row: Row) -> Iterable[Example]:
        name = f"{_image_id(row)}.jpg" if official else row.text("image")
        answers: tuple[Answer, ...] = ()
        if row.has("answer") and not row.blank("answer"):
            answers = (Answer(row.text("answer").strip()),)
        elif labelled:
            raise Unused("no answer")
        yield Example(
            entry.name,
            entry.task,
            row.identity("question_id"),
            images.named(name),
            answers,
            form="visual_question_answering",
            slots={"question": row.text("question").strip()},
            details=_details(row, PurePosixPath(name).stem),
        )

    yield from each(_with_id(path) if official else list_entries(path), make)


def _image_id(row: Row) -> str:
    image_id = row.identity("imageId")
    if "/" in image_id:
        raise FieldError(f"{row.origin}: 'imageId' {image_id[:200]!r} is no name of an image")
    return image_id


def _details(row: Row, image_id: str) -> dict[str, Any]:
    details: dict[str, Any] = {"image_id": image_id}
    types = row.within("types")
    notes = {"question_type": types.note("detailed"), "structural": types.note("structural")}
    notes["full_answer"] = row.note("fullAnswer")
    return details | {name: note for name, note in notes.items() if note is not None}


def _with_id(path: Path) -> Iterator[tuple[str, object]]:
    for origin, question_id, value in object_entries(path):
        yield origin, {**value, "question_id": question_id} if isinstance(value, dict) else value
