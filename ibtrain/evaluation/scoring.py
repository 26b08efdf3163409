"""A benchmark's result: answered records scored, and what the score is to be held against."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ibtrain.data.answering import Way
from ibtrain.evaluation.answered import Answered
from ibtrain.evaluation.metric_base import Metric, MetricError, Score
from ibtrain.evaluation.metrics import metric
from ibtrain.evaluation.normalisation import normalise
from ibtrain.evaluation.protocols import Protocol
from ibtrain.evaluation.sheet import Prediction

_TYPES = ("question_type", "domain", "answer_type", "structural", "grade", "relation")
_NO_TYPE = "all"
_MOST_TYPES = 200
_TEXT_METRICS = (
    "exact match",
    "exact match ignoring case",
    "VQA accuracy",
    "VizWiz accuracy",
    "top-1 accuracy",
)


@dataclass(frozen=True)
class Result:
    """How a model did on one benchmark in one way.

    `score` is None where no answers are public. `by` has the score within each type, by what types
    are of. `missing` counts records without readable images and annotations that `data prepare` set
    aside; where there are any the score is partial.
    """

    name: str
    protocol: Protocol
    way_name: str
    way: Way
    samples: tuple[Answered, ...]
    score: Score | None
    by: dict[str, dict[str, Score]] = field(default_factory=dict)
    best_constant: float | None = None
    best_constant_by_type: dict[str, float] = field(default_factory=dict)
    missing: int = 0
    shuffled_images: bool = False
    notes: tuple[str, ...] = ()
    images: dict[str, bytes] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    """What it was made from: model, split, fingerprints, decoding."""

    @property
    def partial(self) -> bool:
        """Whether something that belongs to the benchmark is not in the score."""
        return self.missing > 0


def score_samples(
    samples: Sequence[Answered], way: Way
) -> tuple[Score | None, dict[str, dict[str, Score]], tuple[str, ...]]:
    """(score, scores by type, what is to be known); no score where nothing has an answer.

    Raises:
        MetricError: the metric does not fit the data.
    """
    known = [sample for sample in samples if sample.answers and not sample.missing]
    unanswered = sum(not sample.answers for sample in samples)
    notes = []
    if unanswered:
        notes.append(
            f"{unanswered:,} of {len(samples):,} records have no public answer and are not scored"
        )
    if not known:
        return None, {}, tuple(notes)
    by_name = metric(way.metric)
    score = by_name.score(known)
    # Scores of types are of sets of their own: CIDEr's document frequencies are theirs, as the
    # NoCaps server has it.
    by = {
        key: _by_type(known, key, by_name)
        for key in _TYPES
        if any(key in sample.details for sample in known)
    }
    return score, {key: own for key, own in by.items() if own}, (*notes, *score.notes)


def _by_type(samples: Sequence[Answered], key: str, by_name: Metric) -> dict[str, Score]:
    own: dict[str, list[Answered]] = defaultdict(list)
    for sample in samples:
        own[str(sample.details.get(key, "not told"))].append(sample)
    if len(own) > _MOST_TYPES:
        return {}
    found = {}
    for kind in sorted(own):
        try:
            found[kind] = by_name.score(own[kind])
        except MetricError:
            continue  # AUC of one label alone, say
    return found


def type_of(sample: Answered) -> str:
    """The type of a question by which pictures are spread and constants are told."""
    return str(next((sample.details[key] for key in _TYPES if key in sample.details), _NO_TYPE))


def best_constant(samples: Sequence[Answered], way: Way) -> tuple[float | None, dict[str, float]]:
    """What one constant answer per question type can reach, looked up in the gold answers: the
    score of a model that knows the questions' types and nothing of the images.

    Returns:
        The share over all questions, and within each type; nothing where answers are not texts that
        are compared as such.
    """
    known = [sample for sample in samples if sample.answers and not sample.missing]
    if way.metric not in _TEXT_METRICS or not known:
        return None, {}
    accepted: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in known:
        accepted[type_of(sample)].update({normalise(text) for text in sample.texts})
    by_kind: dict[str, list[Answered]] = defaultdict(list)
    for sample in known:
        by_kind[type_of(sample)].append(sample)
    by_name = metric(way.metric)
    total, by_type = 0.0, {}
    for kind in sorted(by_kind):
        own = by_kind[kind]
        (word, _), *_ = accepted[kind].most_common(1)
        values = [value or 0.0 for value in by_name.values([_saying(one, word) for one in own])]
        by_type[kind] = sum(values) / len(own)
        total += sum(values)
    return total / len(known), by_type


def _saying(sample: Answered, text: str) -> Answered:
    return replace(sample, prediction=text)


def values_of(result: Result) -> dict[int, float | None]:
    """The metric's value of each sample that was scored, by its number."""
    if result.score is None:
        return {}
    known = [sample for sample in result.samples if sample.answers and not sample.missing]
    pairs = zip(known, result.score.values, strict=True)
    return {sample.index: value for sample, value in pairs}


def is_right(way: Way, value: float | None) -> bool | None:
    """Whether a value is of a right answer; None where there is no such thing."""
    if value is None or way.metric in ("CIDEr", "AUC"):
        return None
    return value >= 1.0 if way.metric == "MRR" else value > 0.5


def shown(result: Result) -> list[Prediction]:
    """The samples whose pictures are kept."""
    values = values_of(result)
    return [
        Prediction(
            sample.id,
            sample.question,
            sample.prediction,
            sample.texts[:3],
            type_of(sample),
            is_right(result.way, values.get(sample.index)),
        )
        for sample in result.samples
        if sample.id in result.images
    ]
