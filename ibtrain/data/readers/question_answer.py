"""A list of questions about images with their answers: your own, or LAVIS's form of VQA's files.

The file is JSON, JSON Lines or CSV. Each entry has "image" (a path, or a list of several),
"question" and "answer" or "answers": a string or a number, a list of them (one an annotator; how
many gave an answer is its weight), or a list of objects with "answer". Its id is "question_id" or
"id", else its position in the file. The dataset's `reader_options` rename what is read: {question:
query, answer: label, image: file}; where an entry lacks such a name, its keys are compared without
regard to case. With {generate: question}, the answer is given and the question is what is asked
for. With {choices: options}, the list of texts at that key are an entry's choices, which evaluation
can rank; a prompt shows them at {options}.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.instructions import format_options
from ibtrain.data.readers.choices import choices_of
from ibtrain.data.readers.fields import (
    FieldError,
    Rejected,
    Row,
    Unused,
    counted_answers,
    each,
)
from ibtrain.data.readers.files import Images, annotation_files
from ibtrain.data.readers.lists import entries
from ibtrain.data.readers.marks import without_marks
from ibtrain.data.records import Answer, Example

REVISION = 2  # what was written from the same files before differs
MAXIMUM_IMAGES = 64  # of one example
OPTIONS = ("image", "question", "answer", "id", "generate", "choices")


def read(raw: Path, split: str, entry: DatasetEntry) -> Iterator[Example | Rejected]:
    """One example per question."""
    (path,) = annotation_files(raw, split, entry)
    yield from read_list(path, split, entry, Images(raw, entry))


def read_list(
    path: Path, split: str, entry: DatasetEntry, images: Images
) -> Iterator[Example | Rejected]:
    """The examples of one file."""
    options = entry.reader_options
    labelled = entry.splits[split].labelled
    image, question = options.get("image", "image"), options.get("question", "question")
    answers = (options["answer"],) if "answer" in options else ("answers", "answer")
    identities = (options["id"],) if "id" in options else ("question_id", "id")

    def make(row: Row, number: int) -> Iterable[Example]:
        answered = any(row.has(name) for name in answers) or not labelled
        if not (row.has(image) and row.has(question) and answered):
            row = row.spelled((image, question, *answers, *identities))
        asks = row.text(question)
        several = not row.has(image) and row.has("images")
        shown_as = pictures(row, "images" if several else image, images)
        if "<image>" in asks:  # lists made of conversations keep their marks
            count = len(shown_as.get("images", ("one",)))
            (asks,) = without_marks([asks], count, video=False, origin=row.origin)
        example = asked(
            entry,
            _identity(row, options.get("id"), number),
            None,
            asks.strip(),
            _answers(row, options.get("answer"), labelled),
            {},
        )
        if "choices" in options:
            example = _with_choices(example, choices_of(row, options["choices"]), row.origin)
        yield replace(example, **shown_as)

    for number, pair in enumerate(entries(path)):
        yield from each([pair], partial(make, number=number))


def _with_choices(example: Example, choices: list[str], origin: str) -> Example:
    """The example with choices; FieldError where its answer is none of them."""
    details: dict[str, Any] = {"choices": choices}
    if example.answers:
        if example.answers[0].text not in choices:
            answer = example.answers[0].text
            raise FieldError(f"{origin}: the answer {answer[:60]!r} is none of the choices")
        details["correct_choice"] = choices.index(example.answers[0].text)
    return replace(
        example,
        slots={**example.slots, "options": format_options(choices)},
        details={**example.details, **details},
    )


def asked(
    entry: DatasetEntry,
    identity: str,
    image: Path | None,
    question: str,
    answers: tuple[Answer, ...],
    details: dict[str, Any],
) -> Example:
    """The example of a question: its answers are asked for or, where the dataset's option
    `generate` is "question", the question to its most frequent answer.

    Raises:
        Unused: the question is asked for, and it has no answer.
    """
    form, slots = "visual_question_answering", {"question": question}
    if entry.reader_options.get("generate") == "question":
        if not answers:
            raise Unused("no answer")
        form, slots = "question_generation", {"answer": answers[0].text}
        answers = (Answer(question),)
    return Example(
        entry.name, entry.task, identity, image, answers, form=form, slots=slots, details=details
    )


def _identity(row: Row, key: str | None, number: int) -> str:
    for name in (key,) if key else ("question_id", "id"):
        if key or row.has(name):
            return row.identity(name)
    return str(number)


def _answers(row: Row, key: str | None, labelled: bool) -> tuple[Answer, ...]:
    name = key or ("answers" if row.has("answers") else "answer")
    if not row.has(name):
        if labelled:
            raise Unused("no answer")
        return ()
    return counted_answers(_answer_texts(row, name))


def _answer_texts(row: Row, key: str) -> list[str]:
    """The answers at `key`: a text or number, a list of them, or of objects with "answer"."""
    if not row.holds_objects(key):
        return row.words(key)
    return [text for answer in row.rows(key) for text in answer.words("answer")]


def pictures(row: Row, key: str, images: Images) -> dict[str, Any]:
    """The fields of an example with the image at `key`, or the list of them.

    Raises:
        FieldError: one is not there, or there is none or too many.
    """
    names = row.texts(key) if row.holds_list(key) else [row.text(key)]
    if not 1 <= len(names) <= MAXIMUM_IMAGES:
        raise FieldError(f"{row.origin}: {key!r} must be 1 to {MAXIMUM_IMAGES} images")
    return shown(tuple(images.named_or_coco(name) for name in names))


def shown(found: tuple[Path, ...]) -> dict[str, Any]:
    """The fields of an example with these images: one, or several."""
    return {"image": found[0]} if len(found) == 1 else {"images": found}
