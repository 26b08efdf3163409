"""A series of any length within bounded memory: neighbouring values become one point."""

from collections.abc import Iterator
from dataclasses import dataclass

from ibtrain.charts import Point

MOST_POINTS = 600
"""Of a line; a page's chart has fewer pixels."""


@dataclass(slots=True)
class _Values:
    """What is known of the values that became one point."""

    steps: float
    total: float
    low: float
    high: float
    count: int

    def take(self, step: int, value: float) -> None:
        self.steps += step
        self.total += value
        if value < self.low:
            self.low = value
        elif value > self.high:
            self.high = value
        self.count += 1

    def add(self, other: "_Values") -> None:
        self.steps += other.steps
        self.total += other.total
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.count += other.count

    def point(self) -> Point:
        return Point(self.steps / self.count, self.total / self.count, self.low, self.high)


class Thinned:
    """Values by step, at most `most` points of them: of each point the mean, the lowest and the
    highest of its values are exact.

    A point takes in a range of steps, the same for all; where there would be too many, the range is
    doubled and neighbours are joined.
    """

    def __init__(self, most: int = MOST_POINTS) -> None:
        self._most = most
        self._first: int | None = None
        self._range = 1
        self._points: dict[int, _Values] = {}

    def add(self, step: int, value: float) -> None:
        """Takes in a value; a step before the first one counts with the first."""
        if self._first is None:
            self._first = step
        offset = max(0, step - self._first)
        while offset // self._range >= self._most:
            self._double()
        number = offset // self._range
        values = self._points.get(number)
        if values is None:
            self._points[number] = _Values(step, value, value, value, 1)
        else:
            values.take(step, value)

    def _double(self) -> None:
        self._range *= 2
        joined: dict[int, _Values] = {}
        for number, values in sorted(self._points.items()):
            old = joined.setdefault(number // 2, values)
            if old is not values:
                old.add(values)
        self._points = joined

    def points(self) -> list[Point]:
        """The points in rising order of steps."""
        return [values.point() for _, values in sorted(self._points.items())]

    def __iter__(self) -> Iterator[Point]:
        return iter(self.points())

    def __len__(self) -> int:
        return len(self._points)
