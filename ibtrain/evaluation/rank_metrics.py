"""Metrics of scores and ranks: AUC, average precision, MRR, NDCG."""

from collections.abc import Sequence
from math import log2

import numpy as np
from numpy.typing import NDArray

from ibtrain.evaluation.answered import Answered
from ibtrain.evaluation.intervals import Values, bootstrap
from ibtrain.evaluation.metric_base import Metric, MetricError


def average_precision(scores: Sequence[float], truth: Sequence[bool]) -> float:
    """The sum over thresholds of precision times the step in recall; ties share a threshold.

    ValueError where nothing is true.
    """
    total = sum(truth)
    if not total:
        raise ValueError("nothing is true: there is no average precision")
    found, seen, result = 0, 0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        own = [true for score, true in zip(scores, truth, strict=True) if score == threshold]
        found += sum(own)
        seen += len(own)
        result += sum(own) / total * found / seen
    return result


def area_under_curve(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """ROC AUC: the share of pairs of a positive and a negative in which the positive has the
    higher score, ties one half.

    ValueError where one of the two is missing.
    """
    counts = np.ones((1, len(scores)), dtype=np.int64)
    value = float(_areas(np.asarray(scores, float), np.asarray(positive, bool), counts)[0])
    if not np.isfinite(value):
        raise MetricError("AUC needs samples of both labels")
    return value


def _areas(scores: Values, positive: NDArray[np.bool_], counts: NDArray[np.int64]) -> Values:
    """AUC of samples counted several times [draws, samples] -> [draws]; nan without both labels."""
    order = np.argsort(scores, kind="stable")
    ranked, truth = scores[order], positive[order]
    begins = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    drawn = counts[:, order]
    positives = np.add.reduceat(drawn * truth, begins, axis=1)
    negatives = np.add.reduceat(drawn * ~truth, begins, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives
    pairs = (positives * (below + 0.5 * negatives)).sum(1)
    all_pairs = positives.sum(1) * negatives.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        areas: Values = pairs / all_pairs
    return areas


class Auc(Metric):
    """ROC AUC of how much likelier the first label is than the second."""

    def values(self, samples: Sequence[Answered]) -> list[float | None]:
        """log p(first) - log p(second) of each."""
        found: list[float | None] = []
        for sample in samples:
            if len(sample.scores) != 2:
                raise MetricError(f"{sample.id}: AUC needs the scores of two labels")
            found.append(sample.scores[0] - sample.scores[1])
        return found

    @staticmethod
    def _positive(samples: Sequence[Answered]) -> NDArray[np.bool_]:
        return np.array([sample.candidates[0] in sample.texts for sample in samples])

    def aggregate(self, samples: Sequence[Answered], values: Sequence[float]) -> float:
        """Of the samples."""
        return area_under_curve(values, list(self._positive(samples)))

    def resampled(self, samples: Sequence[Answered], values: Sequence[float]) -> Values:
        """Samples are drawn one by one."""
        scores, positive = np.asarray(values, float), self._positive(samples)
        weights = [1 / len(values)] * len(values)
        return bootstrap(len(values), lambda counts: _areas(scores, positive, counts), weights)

    def paired(
        self,
        ours: tuple[Sequence[Answered], Sequence[float]],
        others: tuple[Sequence[Answered], Sequence[float]],
    ) -> Values:
        """The same samples are drawn for both, by the same seed."""
        return self.resampled(*ours) - self.resampled(*others)

    def also(self, samples: Sequence[Answered], values: Sequence[float]) -> dict[str, float]:
        """How often the likelier label is the right one."""
        return {"accuracy": float(np.mean((np.asarray(values) > 0) == self._positive(samples)))}


def rank_of(scores: Sequence[float], correct: int) -> int:
    """The rank of the right candidate, 1 being best; ties are broken against the model."""
    return sum(score >= scores[correct] for score in scores)


def ndcg(scores: Sequence[float], relevance: Sequence[float]) -> float:
    """VisDial's: of the first k, k being how many have any relevance, ties kept in their order.

    ValueError where nothing is relevant.
    """
    count = sum(value > 0 for value in relevance)
    if not count:
        raise ValueError("no candidate is relevant: there is no NDCG")
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    gain = sum(relevance[index] / log2(place + 2) for place, index in enumerate(order[:count]))
    best = sorted(relevance, reverse=True)[:count]
    return gain / sum(value / log2(place + 2) for place, value in enumerate(best))


class MeanReciprocalRank(Metric):
    """MRR of the right candidate among a record's own, with R@1, R@5, R@10, the mean rank and,
    where relevances are known, NDCG.
    """

    def values(self, samples: Sequence[Answered]) -> list[float | None]:
        """1 / rank of each."""
        return [1 / self._rank(sample) for sample in samples]

    @staticmethod
    def _rank(sample: Answered) -> int:
        correct = sample.details.get("correct_choice")
        if not isinstance(correct, int) or not 0 <= correct < len(sample.scores):
            raise MetricError(f"{sample.id}: MRR needs to know which candidate is right")
        return rank_of(sample.scores, correct)

    def also(self, samples: Sequence[Answered], values: Sequence[float]) -> dict[str, float]:
        """The other figures of the ranks."""
        ranks = [self._rank(sample) for sample in samples]
        found = {f"R@{k}": sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 5, 10)}
        found["mean rank"] = sum(ranks) / len(ranks)
        dense = [
            ndcg(sample.scores, relevance)
            for sample in samples
            if (relevance := sample.details.get("relevance"))
            and len(relevance) == len(sample.scores)
        ]
        return found | ({"NDCG": sum(dense) / len(dense)} if dense else {})
