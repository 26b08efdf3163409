"""VSR: statements about where things are in an image, true or false; one JSON object a line."""

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.readers.choices import correct_index
from ibtrain.data.readers.fields import Rejected, Row, Unused, each
from ibtrain.data.readers.files import Images, annotation_files
from ibtrain.data.readers.streams import line_entries
from ibtrain.data.records import Answer, Example

LABELS = ("false", "true")


def read(raw: Path, split: str, entry: DatasetEntry) -> Iterator[Example | Rejected]:
    """One example per statement; VSR has no ids, so it is called IMAGE-LINE."""
    (path,) = annotation_files(raw, split, entry)
    images = Images(raw, entry)

    def make(row: Row) -> Iterable[Example]:
        name = row.text("image")
        image_id = PurePosixPath(name).stem
        image = images.named_or_coco(name)
        if not row.has("label"):
            raise Unused("no answer")
        label = correct_index(row, "label", len(LABELS))
        details: dict[str, Any] = {"image_id": image_id, "choices": list(LABELS)}
        details["correct_choice"] = label
        relation = row.note("relation")
        if relation is not None:
            details["relation"] = relation
        line = row.origin.rpartition(":")[2]
        yield Example(
            entry.name,
            entry.task,
            f"{image_id}-{line}",
            image,
            (Answer(LABELS[label]),),
            form="statement",
            slots={"statement": row.text("caption").strip()},
            details=details,
        )

    yield from each(line_entries(path), make)
