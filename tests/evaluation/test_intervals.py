import numpy as np
import pytest

from ibtrain.evaluation.intervals import (
    bootstrap_mean,
    percentile_interval,
    wilson_interval,
)


def test_wilson_interval():
    low, high = wilson_interval(80, 100)
    assert low == pytest.approx(0.7112, abs=1e-4)
    assert high == pytest.approx(0.8666, abs=1e-4)
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(0, 10)[1] == pytest.approx(0.2775, abs=1e-4)
    for right, total in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="no share"):
            wilson_interval(right, total)


def test_the_bootstrap_is_that_of_drawing_groups():
    """Against drawing them one by one."""
    source = np.random.default_rng(5)
    groups = [f"g{number}" for number in source.integers(0, 40, 300)]
    values = [float(one) for one in source.integers(0, 4, 300) / 3]
    means = bootstrap_mean(values, groups)
    names = sorted(set(groups))
    sums = np.array([sum(v for v, g in zip(values, groups, strict=True) if g == n) for n in names])
    counts = np.array([groups.count(name) for name in names])
    drawn = source.integers(0, len(names), (10_000, len(names)))
    expected = sums[drawn].sum(1) / counts[drawn].sum(1)
    assert means.mean() == pytest.approx(expected.mean(), abs=0.002)
    assert means.std() == pytest.approx(expected.std(), rel=0.04)
    assert np.array_equal(means, bootstrap_mean(values, groups))
    assert percentile_interval(means) == pytest.approx(percentile_interval(expected), abs=0.006)
    # Questions on one picture are drawn together, so there is less to be sure of.
    alone = bootstrap_mean(values, [str(number) for number in range(300)])
    assert means.std() != pytest.approx(alone.std(), rel=0.001)


def test_shares():
    means = bootstrap_mean([1.0] * 80 + [0.0] * 20, [str(number) for number in range(100)])
    assert percentile_interval(means) == pytest.approx((0.72, 0.88), abs=0.011)
    assert percentile_interval(bootstrap_mean([1.0] * 3, ["a", "b", "c"])) == (1.0, 1.0)
