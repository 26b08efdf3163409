"""VisDial v1.0: dialogs of ten rounds about an image, each with a hundred answers to rank.

Questions and answers are kept in two lists, and the rounds hold indices into them. The caption of
the image begins the history of every round, as VisDial (arXiv 1611.08669) defines it. LAVIS reads
the same files. Where the dense annotations lie beside the dialogs, `relevance` in `details` has
those of the round of each dialog that they are of.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.readers.choices import correct_index
from ibtrain.data.readers.fields import (
    MAXIMUM_TEXT,
    FieldError,
    Rejected,
    Row,
    Unused,
    each,
)
from ibtrain.data.readers.files import Images, annotation_files
from ibtrain.data.readers.streams import entries_under, list_entries
from ibtrain.data.records import Answer, Example

MAXIMUM_ROUNDS = 100
MAXIMUM_OPTIONS = 1000
MAXIMUM_CHARACTERS = 1 << 29  # of all questions or answers; VisDial's own have 12 million


def read(raw: Path, split: str, entry: DatasetEntry) -> Iterator[Example | Rejected]:
    """Examples IMAGE-ROUND, rounds counted from 1; the test split asks its last round alone."""
    path, *rest = annotation_files(raw, split, entry)
    images = Images(raw, entry)
    relevances = _relevances(rest[0]) if rest else {}
    questions = _texts(path, "data.questions")
    answers = _texts(path, "data.answers")
    labelled = entry.splits[split].labelled

    def make(row: Row) -> Iterable[Example]:
        image_id = row.identity("image_id")
        image = _image(image_id, split, images)
        caption = row.text("caption").strip()
        history = [caption]
        rounds = row.rows("dialog")
        if not rounds:
            raise Unused("no turns")
        if len(rounds) > MAXIMUM_ROUNDS:
            raise FieldError(f"{row.origin}: {len(rounds)} rounds; at most {MAXIMUM_ROUNDS}")
        for number, turn in enumerate(rounds, start=1):
            question = _text(turn, "question", questions)
            details = {"image_id": image_id, "round": number, "caption": caption}
            right, ranked = _options(turn, answers, labelled)
            relevance = relevances.get((image_id, number))
            if relevance is not None and len(relevance) == len(ranked.get("choices", ())):
                details["relevance"] = relevance
            if ranked:
                yield Example(
                    entry.name,
                    entry.task,
                    f"{image_id}-{number}",
                    image,
                    right,
                    form="dialog",
                    slots={"history": " ".join(history), "question": question},
                    details=details | ranked,
                )
            answer = _text(turn, "answer", answers) if turn.has("answer") else ""
            history.append(f"Question: {question} Answer: {answer}")

    yield from each(entries_under(path, "data.dialogs"), make)


def _relevances(path: Path) -> dict[tuple[str, int], list[float]]:
    """How relevant each option of a round is, by image and round: the dense annotations.

    Raises:
        ValueError: naming the file, where it is damaged.
    """
    found = {}
    for place, value in list_entries(path):
        try:
            row = Row(value, place)
            given = row.entries("gt_relevance" if row.has("gt_relevance") else "relevance")
            numbers = [float(one) for one in given if isinstance(one, (int, float))]
            if len(numbers) != len(given):
                raise FieldError(f"{place}: 'gt_relevance' must be a list of numbers")
            found[row.identity("image_id"), row.integer("round_id")] = numbers
        except FieldError as error:
            raise ValueError(f"{path}: {error}") from error
    return found


def _texts(path: Path, key: str) -> list[str | None]:
    """The strings of a list that rounds point into; None for what cannot be used.

    Raises:
        ValueError: naming the file, where it is damaged or too large.
    """
    texts: list[str | None] = []
    characters = 0
    for _, value in entries_under(path, key):
        text = _usable(value)
        characters += 1 + len(text or "")
        if characters > MAXIMUM_CHARACTERS:
            raise ValueError(f"{path}: {key} holds more than {MAXIMUM_CHARACTERS} characters")
        texts.append(text)
    return texts


def _usable(value: object) -> str | None:
    """The text without white space around it, if it is one that can be stored."""
    if not isinstance(value, str) or len(value) > MAXIMUM_TEXT:
        return None
    try:
        value.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return None
    return value.strip()


def _text(turn: Row, key: str, texts: list[str | None]) -> str:
    """The text that the index at `key` points to."""
    return _pointed(turn, key, turn.integer(key), texts)


def _pointed(turn: Row, key: str, index: object, texts: list[str | None]) -> str:
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(texts):
        raise FieldError(
            f"{turn.origin}: {key!r} holds an index that is none of {len(texts)} texts"
        )
    text = texts[index]
    if not text:
        raise FieldError(f"{turn.origin}: {key!r} points to text {index}, which is none or empty")
    return text


def _options(
    turn: Row, answers: list[str | None], labelled: bool
) -> tuple[tuple[Answer, ...], dict[str, Any]]:
    """(the right answer, what is ranked) of a round; nothing where an open round has no options."""
    if not turn.has("answer_options") and not labelled:
        return (), {}
    indices = turn.entries("answer_options")
    if not 2 <= len(indices) <= MAXIMUM_OPTIONS:
        raise FieldError(
            f"{turn.origin}: 'answer_options' must be 2 to {MAXIMUM_OPTIONS}, found {len(indices)}"
        )
    options = [_pointed(turn, "answer_options", index, answers) for index in indices]
    if not turn.has("gt_index"):
        if labelled:
            raise FieldError(f"{turn.origin}: 'gt_index' is missing")
        return (), {"choices": options}
    correct = correct_index(turn, "gt_index", len(options))
    if options[correct] != _text(turn, "answer", answers):
        raise FieldError(f"{turn.origin}: 'gt_index' points to another option than 'answer'")
    return (Answer(options[correct]),), {"choices": options, "correct_choice": correct}


def _image(image_id: str, split: str, images: Images) -> Path:
    """VisualDialog_{split}2018_NUMBER.jpg, or for training the COCO image of that number."""
    if not (image_id.isascii() and image_id.isdigit() and len(image_id) <= 12):
        raise FieldError(f"{image_id[:60]!r} is no number of an image")
    name = f"VisualDialog_{split}2018_{image_id.zfill(12)}.jpg"
    try:
        return images.named(name)
    except FieldError:
        if split != "train":
            raise
        return images.coco(image_id)
