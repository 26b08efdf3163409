"""GQA's balanced questions: an object keyed by question id."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.readers.fields import FieldError, Rejected, Row, Unused, each, object_entries
from ibtrain.data.readers.files import Images, annotation_files
from ibtrain.data.records import Answer, Example


def read(raw: Path, split: str, entry: DatasetEntry) -> Iterator[Example | Rejected]:
    """One example per question; `details` has the detailed type of the question."""
    (path,) = annotation_files(raw, split, entry)
    images = Images(raw, entry)

    def make(row: Row) -> Iterable[Example]:
        image_id = row.identity("imageId")
        if "/" in image_id:
            raise FieldError(f"{row.place}: 'imageId' {image_id[:200]!r} is no name of an image")
        if not row.has("answer") or row.blank("answer"):
            raise Unused("no answer")
        details = {"image_id": image_id, "question_type": row.row("types").text("detailed")}
        if row.has("fullAnswer"):
            details["full_answer"] = row.text("fullAnswer")
        return [
            Example(
                entry.name,
                entry.task,
                row.text("question_id"),
                images.named(f"{image_id}.jpg"),
                (Answer(row.text("answer").strip()),),
                form="visual_question_answering",
                slots={"question": row.text("question").strip()},
                details=details,
            )
        ]

    yield from each(_with_id(path), make)


def _with_id(path: Path) -> Iterator[tuple[str, object]]:
    for place, question_id, value in object_entries(path):
        yield place, {**value, "question_id": question_id} if isinstance(value, dict) else value
