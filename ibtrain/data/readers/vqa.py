"""VQAv2 as visualqa.org publishes it: a file of questions and a file of ten answers to each."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.readers.fields import (
    FieldError,
    Rejected,
    Row,
    counted_answers,
    each,
    entries_under,
)
from ibtrain.data.readers.files import Images, annotation_files
from ibtrain.data.records import Example


def read(raw: Path, split: str, entry: DatasetEntry) -> Iterator[Example | Rejected]:
    """One example per question; an answer's weight is the number of annotators who gave it."""
    questions_path, answers_path = annotation_files(raw, split, entry)
    images = Images(raw, entry)
    annotations = _by_question(answers_path)

    def make(row: Row) -> Iterable[Example]:
        question_id = row.identity("question_id")
        annotation = annotations.get(question_id)
        if annotation is None:
            raise FieldError(
                f"{row.place}: question {question_id} has no entry in {answers_path.name}"
            )
        return [
            Example(
                entry.name,
                entry.task,
                question_id,
                images.coco(row.identity("image_id")),
                counted_answers(_answers(annotation)),
                form="visual_question_answering",
                slots={"question": row.text("question").strip()},
                details={
                    "question_type": annotation.text("question_type"),
                    "answer_type": annotation.text("answer_type"),
                },
            )
        ]

    yield from each(entries_under(questions_path, "questions"), make)


def _by_question(path: Path) -> dict[str, Row]:
    """Annotations by question id; the first of several. Damaged ones are missed when asked for."""
    found: dict[str, Row] = {}
    for place, value in entries_under(path, "annotations"):
        try:
            row = Row(value, place)
            found.setdefault(row.identity("question_id"), row)
        except FieldError:
            continue
    return found


def _answers(annotation: Row) -> list[str]:
    """The annotators' answers, without the empty ones."""
    rows = annotation.rows("answers")
    return [row.text("answer") for row in rows if not row.blank("answer")]
