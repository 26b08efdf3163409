"""How sure a score is: 95 % intervals, by Wilson for shares and by the bootstrap for the rest.

The bootstrap draws groups (questions on one picture are not independent), 10,000 times, and takes
percentiles. Groups that are alike are drawn by their number, which is the same distribution.
"""

from collections.abc import Callable, Sequence
from math import sqrt

import numpy as np
from numpy.typing import NDArray

DRAWS = 10_000
_CELLS = 20_000_000  # of a table of draws held at a time
_CONFIDENT = 1.959963984540054  # two-sided 95 % of the normal distribution

Values = NDArray[np.float64]


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927), which holds for small counts as well.

    Raises:
        ValueError: when there is nothing to take a share of.
    """
    if not 0 <= right <= total or total == 0:
        raise ValueError(f"{right} right of {total} is no share")
    share, square = right / total, _CONFIDENT**2
    centre = (share + square / (2 * total)) / (1 + square / total)
    half = (
        _CONFIDENT
        * sqrt(share * (1 - share) / total + square / (4 * total**2))
        / (1 + square / total)
    )
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def bootstrap(
    count: int,
    statistic: Callable[[NDArray[np.int64]], Values],
    weights: Sequence[float],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Values:
    """A statistic of `draws` samples drawn with replacement.

    Args:
        count: how many are drawn.
        statistic: of how often each kind was drawn [draws, kinds] -> [draws].
        weights: how probable each kind is; they sum to 1.
        draws: samples.
        seed: of the drawing.
    """
    generator = np.random.default_rng(seed)
    step = max(1, _CELLS // max(1, len(weights)))
    found = [
        statistic(generator.multinomial(count, weights, size=min(step, draws - begin)))
        for begin in range(0, draws, step)
    ]
    return np.concatenate(found)


def bootstrap_mean(
    values: Sequence[float], groups: Sequence[str], *, draws: int = DRAWS, seed: int = 0
) -> Values:
    """Means of `draws` bootstrap samples of groups.

    Args:
        values: one a sample.
        groups: what each sample belongs to; whole groups are drawn.
        draws: samples of the bootstrap.
        seed: of the drawing.
    """
    totals: dict[str, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        own = totals.setdefault(group, [0.0, 0.0])
        own[0] += value
        own[1] += 1
    kinds, counts = np.unique(np.array(list(totals.values())), axis=0, return_counts=True)

    def mean(drawn: NDArray[np.int64]) -> Values:
        result: Values = (drawn @ kinds[:, 0]) / (drawn @ kinds[:, 1])
        return result

    return bootstrap(len(totals), mean, counts / len(totals), draws=draws, seed=seed)


def percentile_interval(statistics: Values) -> tuple[float, float]:
    """From the 2.5th to the 97.5th percentile, of what is a number."""
    known = statistics[np.isfinite(statistics)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)
