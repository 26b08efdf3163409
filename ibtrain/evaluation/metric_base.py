"""What a metric is: of answered records a value each, an aggregate and its 95 % interval."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ibtrain.evaluation.answered import Answered
from ibtrain.evaluation.intervals import Values, bootstrap_mean, percentile_interval


@dataclass(frozen=True)
class Score:
    """What a metric makes of a benchmark.

    `values` are those of the samples in their order, None where one does not count; `also` holds
    what is reported beside the main figure.
    """

    value: float
    interval: tuple[float, float]
    n: int
    values: tuple[float | None, ...]
    also: dict[str, float]
    notes: tuple[str, ...] = ()


class MetricError(ValueError):
    """A metric and the data do not fit."""


class Metric(ABC):
    """Of answered records with known answers a score.

    Args:
        name: as protocols name it.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def values(self, samples: Sequence[Answered]) -> list[float | None]:
        """Of each sample; None where it does not count.

        Raises:
            MetricError: naming a sample that lacks what the metric needs.
        """

    def resampled(self, samples: Sequence[Answered], values: Sequence[float]) -> Values:
        """The aggregate of 10,000 bootstrap samples; the same ones for the same samples."""
        return bootstrap_mean(values, [sample.group or sample.id for sample in samples])

    def paired(
        self,
        ours: tuple[Sequence[Answered], Sequence[float]],
        others: tuple[Sequence[Answered], Sequence[float]],
    ) -> Values:
        """The difference of the aggregates in 10,000 bootstrap samples of the same records.

        Args:
            ours: samples and values of one model.
            others: of the other model, the same records in the same order.
        """
        differences = [a - b for a, b in zip(ours[1], others[1], strict=True)]
        return bootstrap_mean(differences, [sample.group or sample.id for sample in ours[0]])

    def aggregate(self, samples: Sequence[Answered], values: Sequence[float]) -> float:
        """Of the samples that count, at least one."""
        return float(np.mean(np.asarray(values)))

    def also(self, samples: Sequence[Answered], values: Sequence[float]) -> dict[str, float]:
        """What is reported beside it."""
        return {}

    def notes(self, samples: Sequence[Answered]) -> tuple[str, ...]:
        """What a reader of the figure is to know."""
        return ()

    def score(self, samples: Sequence[Answered]) -> Score:
        """The score of samples; ValueError where none of them counts."""
        values = self.values(samples)
        kept = [
            (sample, value)
            for sample, value in zip(samples, values, strict=True)
            if value is not None
        ]
        if not kept:
            raise MetricError(f"{self.name}: none of {len(samples)} samples counts")
        own, numbers = [sample for sample, _ in kept], [value for _, value in kept]
        return Score(
            self.aggregate(own, numbers),
            percentile_interval(self.resampled(own, numbers)),
            len(own),
            tuple(values),
            self.also(own, numbers),
            self.notes(own),
        )


class Mean(Metric):
    """The mean of a value of each sample."""

    def __init__(
        self,
        name: str,
        value: Callable[[Answered], float | None],
        notes: Callable[[Sequence[Answered]], tuple[str, ...]] | None = None,
    ) -> None:
        super().__init__(name)
        self._value = value
        self._notes = notes

    def values(self, samples: Sequence[Answered]) -> list[float | None]:
        """Of each sample."""
        return [self._value(sample) for sample in samples]

    def notes(self, samples: Sequence[Answered]) -> tuple[str, ...]:
        """What a reader of the figure is to know."""
        return () if self._notes is None else self._notes(samples)
