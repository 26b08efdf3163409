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
    load_object,
    numbered,
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
                "visual_question_answering",
                question_id,
                images.coco(row.identity("image_id")),
                counted_answers(_answers(annotation)),
                slots={"question": row.text("question").strip()},
                details={
                    "question_type": annotation.text("question_type"),
                    "answer_type": annotation.text("answer_type"),
                },
            )
        ]

    content = Row(load_object(questions_path), questions_path.name)
    yield from each(numbered(questions_path, content.entries("questions")), make)


def _by_question(path: Path) -> dict[str, Row]:
    """Annotations by question id; the first of several. Damaged ones are missed when asked for."""
    found: dict[str, Row] = {}
    content = Row(load_object(path), path.name)
    for place, value in numbered(path, content.entries("annotations")):
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
