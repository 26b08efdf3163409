from random import Random
from statistics import fmean

import pytest

from ibtrain.charts import Point
from ibtrain.report.thinning import Thinned


def test_few_values_are_kept_as_they_are():
    series = Thinned(most=8)
    for step, value in ((10, 1.0), (11, 3.0), (15, 2.0)):
        series.add(step, value)
    assert series.points() == [
        Point(10, 1.0, 1.0, 1.0),
        Point(11, 3.0, 3.0, 3.0),
        Point(15, 2.0, 2.0, 2.0),
    ]


@pytest.mark.parametrize(("steps", "every"), [(1000, 1), (997, 7), (5000, 10), (64, 1000)])
def test_many_are_what_grouping_them_all_at_once_gives(steps: int, every: int):
    """Against brute force: the range is the smallest power of two that leaves so few points."""
    random, most = Random(steps), 50
    values = [(5 + every * at, random.gauss(0, 1)) for at in range(steps)]
    series = Thinned(most)
    for step, value in values:
        series.add(step, value)
    width = next(2**n for n in range(60) if (values[-1][0] - 5) // 2**n < most)
    groups: dict[int, list[tuple[int, float]]] = {}
    for step, value in values:
        groups.setdefault((step - 5) // width, []).append((step, value))
    wanted = [
        (fmean(s for s, _ in g), fmean(v for _, v in g), min(v for _, v in g), max(v for _, v in g))
        for g in groups.values()
    ]
    assert len(series) <= most
    assert [(p.x, p.mean, p.low, p.high) for p in series] == [pytest.approx(w) for w in wanted]


def test_a_step_beyond_all_others_costs_no_room():
    series = Thinned(most=10)
    for step in (3, 4, 2**52):
        series.add(step, 1.0)
    assert [point.x for point in series] == [3.5, 2**52]
    series.add(0, 9.0)  # a step before the first counts with it
    assert series.points()[0] == Point(7 / 3, 11 / 3, 1.0, 9.0)
