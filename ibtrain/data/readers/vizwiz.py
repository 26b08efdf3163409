"""VizWiz: questions that blind people asked about their photographs, with ten answers each.

"unanswerable" is an answer like any other: it is what most annotators say of many questions. LAVIS
reads the same files.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.readers.fields import Rejected, Row, Unused, counted_answers, each
from ibtrain.data.readers.files import Images, annotation_files
from ibtrain.data.readers.streams import list_entries
from ibtrain.data.records import Answer, Example


def read(raw: Path, split: str, entry: DatasetEntry) -> Iterator[Example | Rejected]:
    """One example per photograph, called by its file; answers weigh as many as gave them."""
    (path,) = annotation_files(raw, split, entry)
    images = Images(raw, entry)
    labelled = entry.splits[split].labelled

    def make(row: Row) -> Iterable[Example]:
        name = row.text("image")
        yield Example(
            entry.name,
            entry.task,
            PurePosixPath(name).stem,
            images.named(name),
            _answers(row, labelled),
            form="visual_question_answering",
            slots={"question": row.text("question").strip()},
            details=_details(row),
        )

    yield from each(list_entries(path), make)


def _answers(row: Row, labelled: bool) -> tuple[Answer, ...]:
    if not row.has("answers"):
        if labelled:
            raise Unused("no answer")
        return ()
    given = row.rows("answers")
    return counted_answers(answer.text("answer") for answer in given if not answer.blank("answer"))


def _details(row: Row) -> dict[str, Any]:
    details: dict[str, Any] = {}
    kind = row.note("answer_type")
    if kind is not None:
        details["question_type"] = kind
    if row.has("answerable"):
        details["answerable"] = row.integer("answerable")
    return details
