"""Line charts in SVG without a script, for pages.

The lines are drawn in a box that is stretched to the page's width; words and numbers stand around
it as HTML, so that they stay legible on a phone. Resting on a chart shows the values there, and a
table below it gives them to those who do not see it.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ibtrain.pages import text

COLOURS = 8
"""Lines that can be told apart: by colour and, from the fifth on, by dashes."""
_WIDTH, _HEIGHT = 1000, 300
_COLUMNS = 80
_TABLE_ROWS = 12


@dataclass(frozen=True)
class Point:
    """What a line is at `x`: the mean of the values there, the lowest and the highest of them."""

    x: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """One line; `colour` from 0, the same for a run in all charts of a page."""

    name: str
    colour: int
    points: Sequence[Point]


@dataclass(frozen=True)
class Mark:
    """A vertical line at `x`, in the colour of the line that it belongs to, with its reason."""

    x: float
    colour: int
    reason: str


@dataclass(frozen=True)
class Chart:
    """A chart of lines over the same axis."""

    title: str
    lines: Sequence[Line]
    marks: Sequence[Mark] = ()
    unit: str = ""
    scale: Literal["linear", "log"] = "linear"
    note: str = ""
    x_name: str = "step"
    from_zero: bool = False
    """Whether the axis begins at zero: for what is a share or an amount."""
    span: tuple[float, float] | None = None
    """The horizontal axis; default: what the lines have."""


def drawn(chart: Chart) -> str:
    """The chart as a `figure`; the page needs STYLE. Lines without points are left out."""
    lines = [line for line in chart.lines if line.points]
    unit = f" <span class=unit>{text(chart.unit)}</span>" if chart.unit else ""
    note = f"<p class=note>{text(chart.note)}</p>" if chart.note else ""
    title = f"<figcaption>{text(chart.title)}{unit}</figcaption>"
    if not lines:
        return f"<figure class=chart>{title}<p class=note>no values</p>{note}</figure>"
    x = _horizontal(chart, lines)
    y = _Scale.over(lines, chart)
    return (
        f"<figure class=chart>{title}<div class=plot>{_labels(y)}"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{text(_summary(chart, lines))}">{_grid(y)}{_marks(chart, x)}'
        f"{''.join(_line(line, x, y) for line in lines)}{_columns(chart, lines, x)}</svg></div>"
        f"<div class=under><span>{number(x[0])}</span><span>{text(chart.x_name)}</span>"
        f"<span>{number(x[1])}</span></div>{note}{_table(chart, lines, x)}</figure>"
    )


def legend(names: Sequence[str]) -> str:
    """The names of lines 0, 1, ... with their colours."""
    items = "".join(
        f'<li><svg viewBox="0 0 30 10" aria-hidden="true"><path class="line c{at % COLOURS}" '
        f'd="M0 5H30"/></svg><bdi>{text(name)}</bdi></li>'
        for at, name in enumerate(names)
    )
    return f'<ul class=runs aria-label="lines of the charts">{items}</ul>'


def number(value: float) -> str:
    """A number with about four digits that count, as a chart's words need it."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e15 or size < 1e-3:
        return f"{value:.3g}"
    if size >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.{max(0, 3 - math.floor(math.log10(size)))}f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class _Scale:
    """The vertical axis: values from `low` to `high`, and the ticks among them."""

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    @classmethod
    def over(cls, lines: Sequence[Line], chart: Chart) -> "_Scale":
        """The scale that shows every mean, with round ticks.

        The lowest and highest single values may lie outside: one of them would flatten all.
        """
        values = [point.mean for line in lines for point in line.points]
        low, high = min(values), max(values)
        if chart.scale == "log" and low > 0:
            return cls._log(low, high)
        if chart.from_zero:
            low = min(0.0, low)
        if low == high:
            around = abs(low) / 2 or 1.0
            low, high = (0.0 if low > 0 else low - around), high + around
        step = _round_step((high - low) / 4)
        first, last = math.floor(low / step), math.ceil(high / step)
        ticks = tuple(step * at for at in range(first, last + 1))
        return cls(ticks[0], ticks[-1], log=False, ticks=ticks)

    @classmethod
    def _log(cls, low: float, high: float) -> "_Scale":
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        last = max(last, first + 1)
        every = max(1, (last - first) // 5)
        ticks = tuple(10.0**at for at in range(first, last + 1, every))
        return cls(10.0**first, 10.0**last, log=True, ticks=ticks)

    def height(self, value: float) -> float:
        """From 0 at the lower edge to 1 at the upper; what lies outside stays at the edge."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return share

    def y(self, value: float) -> str:
        """In the drawing, whose y grows downwards."""
        return f"{_HEIGHT * (1 - self.height(value)):.1f}"


def _round_step(rough: float) -> float:
    """The smallest of 1, 2, 2.5 and 5 times a power of ten that is no less than `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next((f * power for f in (1, 2, 2.5, 5) if f * power >= rough), 10 * power)


def _horizontal(chart: Chart, lines: Sequence[Line]) -> tuple[float, float]:
    if chart.span is not None:
        low, high = chart.span
    else:
        low = min(line.points[0].x for line in lines)
        high = max(line.points[-1].x for line in lines)
    return (low, high) if high > low else (low - 1, high + 1)


def _x(value: float, span: tuple[float, float]) -> str:
    return f"{_WIDTH * (value - span[0]) / (span[1] - span[0]):.1f}"


def _labels(scale: _Scale) -> str:
    return (
        "<div class=ticks aria-hidden=true>"
        + "".join(
            f'<span style="bottom:{100 * scale.height(tick):.2f}%">{number(tick)}</span>'
            for tick in scale.ticks
        )
        + "</div>"
    )


def _grid(scale: _Scale) -> str:
    lines = "".join(f"M0 {scale.y(tick)}H{_WIDTH}" for tick in scale.ticks)
    return f'<path class=grid d="{lines}"/>'


def _marks(chart: Chart, span: tuple[float, float]) -> str:
    return "".join(
        f'<path class="mark-line c{mark.colour % COLOURS}" d="M{_x(mark.x, span)} 0V{_HEIGHT}"/>'
        for mark in chart.marks
        if span[0] <= mark.x <= span[1]
    )


def _line(line: Line, span: tuple[float, float], scale: _Scale) -> str:
    """The mean as a line, over a band from the lowest to the highest value."""
    colour = line.colour % COLOURS
    points = [(_x(point.x, span), point) for point in line.points]
    band = ""
    if any(point.low < point.high for point in line.points):
        upper = " ".join(f"{x},{scale.y(point.high)}" for x, point in points)
        lower = " ".join(f"{x},{scale.y(point.low)}" for x, point in reversed(points))
        band = f'<polygon class="band c{colour}" points="{upper} {lower}"/>'
    if len(points) == 1:
        [(x, point)] = points
        return f'{band}<path class="dot c{colour}" d="M{x} {scale.y(point.mean)}h0"/>'
    means = " ".join(f"{x},{scale.y(point.mean)}" for x, point in points)
    return f'{band}<polyline class="line c{colour}" points="{means}"/>'


def _columns(chart: Chart, lines: Sequence[Line], span: tuple[float, float]) -> str:
    """Invisible columns that say the values below the pointer."""
    count = min(_COLUMNS, max(len(line.points) for line in lines))
    width = (span[1] - span[0]) / count
    spoken = []
    for column in range(count):
        begin = span[0] + column * width
        said = [
            f"{line.name + ': ' if len(lines) > 1 else ''}{number(point.mean)}"
            + (f" ({number(point.low)} to {number(point.high)})" if point.low < point.high else "")
            for line in lines
            if (point := _nearest(line, begin + width / 2, width)) is not None
        ]
        said += [mark.reason for mark in chart.marks if begin <= mark.x < begin + width]
        if said:
            told = "\n".join([f"{chart.x_name} {number(begin + width / 2)}", *said])
            spoken.append(
                f'<rect class=column x="{_x(begin, span)}" y="0" height="{_HEIGHT}" '
                f'width="{_WIDTH / count:.1f}"><title>{text(told)}</title></rect>'
            )
    return "".join(spoken)


def _nearest(line: Line, x: float, within: float) -> Point | None:
    at = bisect_left(line.points, x, key=lambda point: point.x)
    near = line.points[max(0, at - 1) : at + 1]
    point = min(near, key=lambda point: abs(point.x - x))
    return point if abs(point.x - x) <= within else None


def _table(chart: Chart, lines: Sequence[Line], span: tuple[float, float]) -> str:
    """Some of the values, for those who do not see the lines."""
    longest = max((line.points for line in lines), key=len)
    rows = min(_TABLE_ROWS, len(longest))
    at = [longest[round(row * (len(longest) - 1) / max(1, rows - 1))].x for row in range(rows)]
    width = (span[1] - span[0]) / max(1, rows)
    head = "".join(f"<th scope=col><bdi>{text(line.name)}</bdi></th>" for line in lines)
    body = "".join(
        f"<tr><th scope=row>{number(x)}</th>"
        + "".join(
            f"<td>{'' if (p := _nearest(line, x, width)) is None else number(p.mean)}</td>"
            for line in lines
        )
        + "</tr>"
        for x in at
    )
    return (
        f"<details><summary>values of {text(chart.title)}</summary><div class=scroll tabindex=0 "
        f'role=region aria-label="values of {text(chart.title)}"><table><thead><tr>'
        f"<th scope=col>{text(chart.x_name)}</th>{head}</tr></thead><tbody>{body}</tbody></table>"
        "</div></details>"
    )


def _summary(chart: Chart, lines: Sequence[Line]) -> str:
    """The chart in a sentence."""
    told = [
        f"{line.name}: from {number(line.points[0].mean)} at {chart.x_name} "
        f"{number(line.points[0].x)} to {number(line.points[-1].mean)} at {chart.x_name} "
        f"{number(line.points[-1].x)}"
        for line in lines
    ]
    unit = f", {chart.unit}" if chart.unit else ""
    return f"{chart.title}{unit}. {'; '.join(told)}."


STYLE = """
:root{--c0:#0b6e69;--c1:#c2570c;--c2:#4a5fc1;--c3:#a8327a;--c4:#7a6a00;--c5:#2a7ab0;--c6:#8a4b2a;
--c7:#55585a}
@media(prefers-color-scheme:dark){:root{--c0:#4cc3ba;--c1:#f2994a;--c2:#93a3ff;--c3:#ee86c2;
--c4:#d3c14c;--c5:#74bdee;--c6:#d09a78;--c7:#aab0b2}}
.c0{--c:var(--c0)}.c1{--c:var(--c1)}.c2{--c:var(--c2)}.c3{--c:var(--c3)}
.c4{--c:var(--c4);stroke-dasharray:7 3}.c5{--c:var(--c5);stroke-dasharray:2 3}
.c6{--c:var(--c6);stroke-dasharray:9 3 2 3}.c7{--c:var(--c7);stroke-dasharray:4 4}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(370px,100%),1fr));gap:16px;
margin-top:14px;align-items:start}
.charts.large{grid-template-columns:1fr}
.chart{margin:0;background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:12px 16px 10px;min-width:0}
figcaption{font-size:14px;font-weight:600;margin-bottom:14px}
.unit{font-weight:400;color:var(--soft);font-size:13px}
.plot{position:relative;height:150px;margin-left:52px}
.large .plot{height:260px}
.plot svg{position:absolute;inset:0;width:100%;height:100%;overflow:visible}
.ticks span{position:absolute;right:calc(100% + 8px);transform:translateY(50%);font-size:11px;
line-height:1;color:var(--soft);white-space:nowrap;font-variant-numeric:tabular-nums}
.under{display:flex;justify-content:space-between;margin:6px 0 4px 52px;font-size:11px;
color:var(--soft);font-variant-numeric:tabular-nums}
.grid,.line,.mark-line,.dot{fill:none;vector-effect:non-scaling-stroke}
.grid{stroke:var(--line)}
.line{stroke:var(--c);stroke-width:1.8;stroke-linejoin:round}
.dot{stroke:var(--c);stroke-width:7;stroke-linecap:round;stroke-dasharray:none}
.band{fill:var(--c);opacity:.16}
.mark-line{stroke:var(--c);stroke-width:1;stroke-dasharray:2 4}
.column{fill:transparent}.column:hover{fill:var(--ink);fill-opacity:.07}
.runs{list-style:none;margin:10px 0 0;padding:0;display:flex;flex-wrap:wrap;gap:4px 20px}
.runs li{display:flex;align-items:center;gap:8px;padding:0;margin:0;justify-content:flex-start}
.runs svg{width:30px;height:10px;flex:none}
@media print{.column{display:none}}
"""
