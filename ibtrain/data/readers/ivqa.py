"""iVQA: questions about clips of instructional videos, with five answers each; a CSV file a split.

The videos are HowTo100M's. Where the file has columns "start" and "end", they are the seconds that
the clip was cut from; the file of a video is to hold the clip alone.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.readers.fields import Rejected, Row, counted_answers, each
from ibtrain.data.readers.files import Images, annotation_files
from ibtrain.data.readers.tables import csv_entries
from ibtrain.data.records import Example

ANNOTATORS = 5


def read(raw: Path, split: str, entry: DatasetEntry) -> Iterator[Example | Rejected]:
    """One example per row, called VIDEO-ROW; answers weigh as many as gave them."""
    (path,) = annotation_files(raw, split, entry)
    images = Images(raw, entry)

    def make(row: Row) -> Iterable[Example]:
        video_id = row.text("video_id").strip()
        given = [f"answer{number}" for number in range(1, 1 + ANNOTATORS)]
        answers = counted_answers(row.text(key) for key in given if row.has(key))
        details: dict[str, Any] = {"video_id": video_id}
        for key in ("start", "end"):
            note = row.note(key)
            if note is not None:
                details[key] = note.strip()
        yield Example(
            entry.name,
            entry.task,
            f"{video_id}-{row.integer('row')}",
            None,
            answers,
            form="visual_question_answering",
            slots={"question": row.text("question").strip()},
            details=details,
            video=images.video(video_id),
        )

    yield from each(_numbered(path), make)


def _numbered(path: Path) -> Iterator[tuple[str, object]]:
    """The rows, each with its number, counted from 1 after the header."""
    for number, (origin, value) in enumerate(csv_entries(path), start=1):
        yield origin, {**value, "row": number} if isinstance(value, dict) else value
