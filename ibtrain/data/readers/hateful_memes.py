"""HatefulMemes: an image, the text written on it and whether it is hateful; one object a line."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.readers.choices import correct_index
from ibtrain.data.readers.fields import Rejected, Row, Unused, each
from ibtrain.data.readers.files import Images, annotation_files
from ibtrain.data.readers.streams import line_entries
from ibtrain.data.records import Answer, Example

LABELS = ("no", "yes")


def read(raw: Path, split: str, entry: DatasetEntry) -> Iterator[Example | Rejected]:
    """One example per meme: is it hateful? `label` in `details` is 1 where it is.

    The first releases kept the labels of the test splits back; their examples have no answer.
    """
    (path,) = annotation_files(raw, split, entry)
    images = Images(raw, entry)
    labelled = entry.splits[split].labelled

    def make(row: Row) -> Iterable[Example]:
        text = row.text("text").strip()
        details: dict[str, Any] = {"text": text, "choices": list(LABELS)}
        answers: tuple[Answer, ...] = ()
        if row.has("label"):
            label = correct_index(row, "label", len(LABELS))
            answers = (Answer(LABELS[label]),)
            details |= {"correct_choice": label, "label": label}
        elif labelled:
            raise Unused("no answer")
        yield Example(
            entry.name,
            entry.task,
            row.identity("id"),
            images.named(row.text("img")),
            answers,
            form="hateful",
            slots={"text": text},
            details=details,
        )

    yield from each(line_entries(path), make)
