"""A-OKVQA as its owners publish it: each question gives a direct and a multiple-choice example."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.instructions import format_options
from ibtrain.data.readers.fields import (
    FieldError,
    Rejected,
    Row,
    Unused,
    counted_answers,
    each,
    list_entries,
)
from ibtrain.data.readers.files import Images, annotation_files
from ibtrain.data.records import Answer, Example


def read(raw: Path, split: str, entry: DatasetEntry) -> Iterator[Example | Rejected]:
    """Examples `ID-direct` (answers weighted by annotators) and `ID-choice` (the right choice)."""
    (path,) = annotation_files(raw, split, entry)
    images = Images(raw, entry)
    for pair in list_entries(path):  # both of a question together: one image
        yield from each([pair], lambda row: _direct(row, entry, images))
        yield from each([pair], lambda row: _choice(row, entry, images))


def _image(row: Row, images: Images) -> Path:
    """By COCO's number (official), else by the path that LAVIS's files add."""
    if row.has("image"):
        return images.named_or_coco(row.text("image"))
    return images.coco(row.identity("image_id"))


def _direct(row: Row, entry: DatasetEntry, images: Images) -> Iterable[Example]:
    if not row.has("direct_answers"):
        raise Unused("no answer")
    return [
        Example(
            entry.name,
            entry.task,
            f"{row.identity('question_id')}-direct",
            _image(row, images),
            counted_answers(row.texts("direct_answers")),
            form="visual_question_answering",
            slots={"question": row.text("question").strip()},
        )
    ]


def _choice(row: Row, entry: DatasetEntry, images: Images) -> Iterable[Example]:
    if not row.has("correct_choice_idx"):
        raise Unused("no answer")
    choices = [choice.strip() for choice in row.texts("choices")]
    right = row.integer("correct_choice_idx")
    if not 2 <= len(choices) <= 26 or not all(choices):
        raise FieldError(f"{row.place}: 'choices' must be 2 to 26 strings that are not empty")
    if not 0 <= right < len(choices):
        raise FieldError(
            f"{row.place}: 'correct_choice_idx' is {right}, there are {len(choices)} choices"
        )
    return [
        Example(
            entry.name,
            entry.task,
            f"{row.identity('question_id')}-choice",
            _image(row, images),
            (Answer(choices[right]),),
            form="multiple_choice",
            slots={"question": row.text("question").strip(), "options": format_options(choices)},
            details={"choices": choices, "correct_choice": right},
        )
    ]
