"""Metrics: of answered records a value each, an aggregate and its 95 % bootstrap interval.

Values are from 0 to 1 (CIDEr: from 0 to 10); published figures are 100 times the aggregate. Where
the rules come from is said at each; all are tested on examples worked by hand, and against the
reference implementation where there is one.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ibtrain.data.records import Answer
from ibtrain.evaluation.answered import Answered
from ibtrain.evaluation.captions import cider, tokenize
from ibtrain.evaluation.metric_base import Mean, Metric, MetricError
from ibtrain.evaluation.normalisation import normalise
from ibtrain.evaluation.rank_metrics import Auc, MeanReciprocalRank, average_precision

ANNOTATORS_NEEDED = 4
"""With fewer answers the leave-one-out rule of VQA gives nobody a point for a single agreement."""


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the prediction equals one of the accepted answers, both normalised as VQA's."""
    return normalise(prediction) in {normalise(answer) for answer in answers}


def vqa_accuracy(prediction: str, answers: Sequence[Answer]) -> float:
    """VQA's soft accuracy: the mean over annotators of min(1, agreements among the others / 3).

    Annotators' answers are normalised where they are not all equal, the prediction always. With
    fewer than 4 answers: whether it equals any of them.
    """
    total = round(sum(answer.weight for answer in answers))
    if total < ANNOTATORS_NEEDED:
        return float(exact_match(prediction, [answer.text for answer in answers]))
    said = normalise(prediction)
    alike = len(answers) > 1
    agreeing = round(
        sum(
            answer.weight
            for answer in answers
            if (normalise(answer.text) if alike else answer.text) == said
        )
    )
    of_agreeing = min(1.0, (agreeing - 1) / 3) if agreeing else 0.0
    return (agreeing * of_agreeing + (total - agreeing) * min(1.0, agreeing / 3)) / total


def direct_answer_accuracy(prediction: str, answers: Sequence[Answer]) -> float:
    """A-OKVQA's (allenai/aokvqa): min(1, annotators with exactly this answer / 3)."""
    agreeing = sum(answer.weight for answer in answers if answer.text == prediction)
    return min(1.0, agreeing / 3)


def ivqa_accuracy(prediction: str, answers: Sequence[Answer]) -> float:
    """iVQA's (antoyang/just-ask): min(1, annotators with this answer / 2), in lower case."""
    said = prediction.strip().lower()
    agreeing = sum(answer.weight for answer in answers if answer.text.strip().lower() == said)
    return min(1.0, agreeing / 2)


def _of_answers(value: Callable[[str, Sequence[Answer]], float]) -> Callable[[Answered], float]:
    return lambda sample: value(sample.prediction, sample.answers)


def _exact(sample: Answered) -> float:
    return float(exact_match(sample.prediction, sample.texts))


def _in_lower_case(sample: Answered) -> float:
    """Equal but for case and white space around (OCR-VQA, MSVD-QA, MSRVTT-QA)."""
    said = sample.prediction.strip().lower()
    return float(said in {text.strip().lower() for text in sample.texts})


def _easy_direct(sample: Answered) -> float | None:
    """A-OKVQA leaves out questions whose direct answers are marked as difficult."""
    if sample.details.get("difficult_direct_answer"):
        return None
    return direct_answer_accuracy(sample.prediction, sample.answers)


def _choice(sample: Answered) -> float:
    """Whether the chosen text is the right one."""
    if not sample.candidates:
        raise MetricError(
            f"{sample.id}: nothing to choose from; the metric is for questions with choices"
        )
    return float(sample.prediction in sample.texts)


def _few_annotators(samples: Sequence[Answered]) -> tuple[str, ...]:
    few = sum(
        sum(answer.weight for answer in sample.answers) < ANNOTATORS_NEEDED for sample in samples
    )
    if not few:
        return ()
    return (
        f"{few:,} of {len(samples):,} questions have fewer than {ANNOTATORS_NEEDED} answers: exact "
        "match with any of them",
    )


UNANSWERABLE = ("unanswerable", "unsuitable", "unsuitable image")


class VizWiz(Mean):
    """VQA accuracy, with how often and how well a question is said to have no answer."""

    def __init__(self, name: str) -> None:
        super().__init__(name, _of_answers(vqa_accuracy), _few_annotators)

    def also(self, samples: Sequence[Answered], values: Sequence[float]) -> dict[str, float]:
        """The share predicted unanswerable and, where it is known, its average precision."""
        said = [float(normalise(sample.prediction) in UNANSWERABLE) for sample in samples]
        found = {"predicted unanswerable": float(np.mean(said))}
        known = [sample.details.get("answerable") for sample in samples]
        if all(value in (0, 1) for value in known) and 0 in known:
            truth = [value == 0 for value in known]
            found["unanswerable average precision"] = average_precision(said, truth)
        return found


class Cider(Metric):
    """CIDEr-D; its document frequencies are those of the whole, in the interval too."""

    def values(self, samples: Sequence[Answered]) -> list[float | None]:
        """Of each caption, from 0 to 10; an empty one has 0."""
        texts = [sample.prediction for sample in samples]
        counts = [len(sample.answers) for sample in samples]
        for sample in samples:
            texts += sample.texts
        words, self._tokenizer = tokenize(texts)
        references, begin = [], len(samples)
        for count in counts:
            references.append(words[begin : begin + count])
            begin += count
        return list(cider(words[: len(samples)], references))

    def notes(self, samples: Sequence[Answered]) -> tuple[str, ...]:
        """Who tokenized, and how many captions are empty."""
        empty = sum(not sample.prediction.strip() for sample in samples)
        said = f"tokenized by {self._tokenizer}; document frequencies of {len(samples):,} images"
        return (said, *((f"{empty:,} captions are empty",) if empty else ()))


def metric(name: str) -> Metric:
    """The metric called `name`, one of `data.answering.METRICS`."""
    soft = _of_answers(vqa_accuracy)
    made: dict[str, Callable[[], Metric]] = {
        "exact match": lambda: Mean(name, _exact),
        "exact match ignoring case": lambda: Mean(name, _in_lower_case),
        "VQA accuracy": lambda: Mean(name, soft, _few_annotators),
        "VizWiz accuracy": lambda: VizWiz(name),
        "direct-answer accuracy": lambda: Mean(name, _easy_direct),
        "iVQA accuracy": lambda: Mean(name, _of_answers(ivqa_accuracy)),
        "top-1 accuracy": lambda: Mean(name, _in_lower_case),
        "accuracy": lambda: Mean(name, _choice),
        "multiple-choice accuracy": lambda: Mean(name, _choice),
        "AUC": lambda: Auc(name),
        "MRR": lambda: MeanReciprocalRank(name),
        "CIDEr": lambda: Cider(name),
    }
    return made[name]()
