"""A benchmark: prepared questions answered by a model and scored.

Beside the score stands what it must be held against: the best constant answer per question type,
and (with `shuffle_images`) the same model looking at another question's image.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from random import Random

from tqdm import tqdm

from ibtrain.data.catalog import get
from ibtrain.data.records import Record
from ibtrain.data.shards.card import CARD, read_card
from ibtrain.data.shards.records import check_index, read_records
from ibtrain.evaluation.generation import DecodingSettings, generate
from ibtrain.evaluation.metrics import (
    Accuracy,
    accuracy_by_type,
    best_constant_accuracy,
    exact_match,
)
from ibtrain.pretrained.opening import OpenedModel

EXACT_MATCH = "exact match"
METRICS = (EXACT_MATCH,)
PICTURES_KEPT = 24
_NO_TYPE = "all"
_SHORT_ANSWERS = DecodingSettings(beams=1, max_new_tokens=10)
_DECODING = {"gqa": _SHORT_ANSWERS}


@dataclass(frozen=True)
class Prediction:
    """One answered question."""

    id: str
    question: str
    instruction: str
    prediction: str
    answers: tuple[str, ...]
    question_type: str
    correct: bool


@dataclass(frozen=True)
class BenchmarkResult:
    """How a model did; shares are from 0 to 1.

    `images` holds the pictures of a few predictions, by their id, as the model saw them.
    """

    name: str
    metric: str
    value: float
    interval: tuple[float, float]
    """95 %, Wilson."""
    n: int
    by_type: dict[str, Accuracy]
    best_constant: float
    best_constant_by_type: dict[str, float]
    shuffled_images: bool
    predictions: list[Prediction]
    images: dict[str, bytes] = field(default_factory=dict)


def decoding_settings(dataset: str) -> DecodingSettings:
    """How the answers of a benchmark are decoded."""
    return _DECODING.get(dataset, _SHORT_ANSWERS)


def evaluate(
    opened: OpenedModel,
    directory: Path,
    *,
    batch_size: int = 32,
    limit: int | None = None,
    shuffle_images: bool = False,
    seed: int = 0,
    name: str | None = None,
    progress: bool = False,
) -> BenchmarkResult:
    """Answers and scores the questions in a directory of shards.

    Args:
        opened: the model.
        directory: prepared shards of one dataset.
        batch_size: questions answered at a time; the result does not depend on it.
        limit: only the first so many questions.
        shuffle_images: give every question another question's image.
        seed: of the shuffling.
        name: what to call the result; default: the dataset's name.
        progress: show a bar on stderr.

    Raises:
        ValueError: when the shards are missing or damaged, hold several datasets or one whose
            metric is not computed here, or when images cannot be shuffled.
    """
    if batch_size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"batch size {batch_size} and limit {limit} must be at least 1")
    dataset = dataset_of(directory)
    metric = metric_of(dataset)
    total = min(check_index(directory).samples, limit or 1 << 31)
    records: Iterator[Record] = islice(read_records(directory), limit)
    if shuffle_images:
        records = iter(with_shuffled_images(list(records), seed))
    predictions: list[Prediction] = []
    images: dict[str, bytes] = {}
    stride = max(1, total // PICTURES_KEPT)
    with tqdm(total=total, desc=name or dataset, unit=" answers", disable=not progress) as bar:
        for batch in _batches(records, batch_size):
            for record, answered in zip(batch, _answer(opened, batch, dataset), strict=True):
                if len(predictions) % stride == 0 and record.images:
                    images[record.id] = record.images[0]
                predictions.append(answered)
            bar.update(len(batch))
    return _result(name or dataset, metric, predictions, images, shuffle_images)


def dataset_of(directory: Path) -> str:
    """The dataset that a directory of shards holds, by its card, or where it has none by its first
    record.

    Raises:
        ValueError: when the shards are missing or damaged.
    """
    check_index(directory)
    if (directory / CARD).is_file():
        return str(read_card(directory)["report"]["dataset"])
    return next(read_records(directory)).dataset


def metric_of(dataset: str) -> str:
    """The metric of a dataset.

    Raises:
        ValueError: when it is not one that is computed here.
    """
    metric = get(dataset).metric
    if metric not in METRICS:
        raise ValueError(
            f"{dataset} is scored by {metric}, which is not computed here; computed are: "
            f"{', '.join(METRICS)}"
        )
    return metric


def _batches(records: Iterator[Record], size: int) -> Iterator[list[Record]]:
    while batch := list(islice(records, size)):
        yield batch


def _answer(opened: OpenedModel, batch: Sequence[Record], dataset: str) -> list[Prediction]:
    foreign = [record for record in batch if record.dataset != dataset]
    if foreign:
        raise ValueError(
            f"a benchmark is of one dataset; record {foreign[0].id} is of {foreign[0].dataset!r}, "
            f"those before it of {dataset!r}"
        )
    # Where there are several instructions, the first is the one that evaluation uses.
    instructions = [record.instructions[0] for record in batch]
    images = [list(record.images) for record in batch]
    texts = generate(opened, images, instructions, decoding_settings(dataset))
    predictions = []
    for record, instruction, text in zip(batch, instructions, texts, strict=True):
        accepted = tuple(answer.text for answer in record.answers)
        predictions.append(
            Prediction(
                id=record.id,
                question=_question(instruction, dataset),
                instruction=instruction,
                prediction=text,
                answers=accepted,
                question_type=str(record.details.get("question_type", _NO_TYPE)),
                correct=exact_match(text, accepted),
            )
        )
    return predictions


def _question(instruction: str, dataset: str) -> str:
    """The instruction without the prompt around the question."""
    before, slot, after = get(dataset).evaluation_prompt.partition("{question}")
    if not slot or not (instruction.startswith(before) and instruction.endswith(after)):
        return instruction
    return instruction[len(before) : len(instruction) - len(after)]


def _result(
    name: str,
    metric: str,
    predictions: list[Prediction],
    images: dict[str, bytes],
    shuffled_images: bool,
) -> BenchmarkResult:
    correct = [prediction.correct for prediction in predictions]
    types = [prediction.question_type for prediction in predictions]
    answers = [prediction.answers for prediction in predictions]
    accuracy = Accuracy.of(correct)
    constant, constant_by_type = best_constant_accuracy(answers, types)
    return BenchmarkResult(
        name=name,
        metric=metric,
        value=accuracy.value,
        interval=accuracy.interval,
        n=accuracy.n,
        by_type=accuracy_by_type(correct, types),
        best_constant=constant,
        best_constant_by_type=constant_by_type,
        shuffled_images=shuffled_images,
        predictions=predictions,
        images=images,
    )


def with_shuffled_images(records: Sequence[Record], seed: int) -> list[Record]:
    """The records with their images dealt out anew; records without an image stay as they are.

    Equal images (several questions on one picture) are laid side by side and the row is turned by
    the longest such run, so that every record gets a different image, unless one image makes up
    more than half of all; then as many as possible do.

    Raises:
        ValueError: when there are not two different images.
    """
    by_image: dict[bytes, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        if record.images:
            by_image[hashlib.sha256(b"".join(record.images)).digest()].append(index)
    if len(by_image) < 2:
        raise ValueError(
            f"{len(by_image)} different images among {len(records)} questions: nothing to shuffle"
        )
    random = Random(f"{seed}/images")
    groups = list(by_image.values())
    random.shuffle(groups)
    for group in groups:
        random.shuffle(group)
    order = [index for group in groups for index in group]
    turn = max(len(group) for group in groups)
    shuffled = list(records)
    for place, index in enumerate(order):
        giver = records[order[(place + turn) % len(order)]]
        shuffled[index] = replace(records[index], images=giver.images)
    return shuffled
