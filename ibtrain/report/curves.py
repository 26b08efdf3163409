"""The curves of runs, laid over each other."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from ibtrain.charts import Chart, Line, Mark, Point, drawn
from ibtrain.report.run import ReportedRun
from ibtrain.report.thinning import Thinned

_MOST_MARKS = 50


def loss_chart(runs: Sequence[ReportedRun]) -> str:
    """The loss, large."""
    chart = _scalar(runs, "loss", "Loss", "per answer token")
    if chart.marks:
        chart = replace(chart, note="dotted: where a run went on from a checkpoint")
    return f"<div class='charts large'>{drawn(chart)}</div>"


def other_charts(runs: Sequence[ReportedRun]) -> str:
    """All that a run reports besides the loss."""
    charts = [
        _scalar(runs, "learning_rate", "Learning rate", from_zero=True),
        _scalar(runs, "gradient_norm", "Gradient norm", scale="log"),
        _scalar(runs, "samples_per_second", "Throughput", "samples per second", from_zero=True),
        _scalar(
            runs,
            "answer_tokens_per_second",
            "Answers",
            "tokens per second",
            from_zero=True,
        ),
        _scalar(runs, "data_wait", "Waiting for data", "% of the time", from_zero=True, factor=100),
        _scalar(runs, "memory/device_gib", "Device memory", "GiB, peak of rank 0", from_zero=True),
        _scalar(runs, "memory/host_gib", "Host memory", "GiB, peak of rank 0", from_zero=True),
    ]
    shown = [drawn(chart) for chart in charts if any(line.points for line in chart.lines)]
    return f"<div class=charts>{''.join(shown)}</div>"


def dataset_charts(runs: Sequence[ReportedRun]) -> str:
    """The loss of each dataset, in the order of the first run's mixture."""
    names = dict.fromkeys(name for run in runs for name in run.metrics.loss_by_dataset)
    charts = [
        Chart(
            title=name,
            lines=[
                Line(run.label, at, run.metrics.loss_by_dataset.get(name, Thinned()).points())
                for at, run in enumerate(runs)
            ],
            span=_span(runs),
        )
        for name in names
    ]
    return f"<div class=charts>{''.join(drawn(chart) for chart in charts)}</div>"


def _scalar(
    runs: Sequence[ReportedRun],
    name: str,
    title: str,
    unit: str = "",
    *,
    scale: Literal["linear", "log"] = "linear",
    from_zero: bool = False,
    factor: float = 1.0,
) -> Chart:
    lines = [
        Line(run.label, at, _times(run.metrics.scalars[name].points(), factor))
        for at, run in enumerate(runs)
    ]
    return Chart(
        title=title,
        lines=lines,
        marks=[mark for at, run in enumerate(runs) for mark in _restarts(run, at)],
        unit=unit,
        scale=scale,
        from_zero=from_zero,
        span=_span(runs),
    )


def _times(points: Sequence[Point], factor: float) -> list[Point]:
    return [
        Point(point.x, factor * point.mean, factor * point.low, factor * point.high)
        for point in points
    ]


def _restarts(run: ReportedRun, colour: int) -> Iterator[Mark]:
    """Where a run went on after it had stopped."""
    again = [start for start in run.starts if start.step]
    for start in again[-_MOST_MARKS:]:
        assert start.step is not None
        yield Mark(start.step, colour, f"{run.label} went on from step {start.step:,} {start.time}")


def _span(runs: Sequence[ReportedRun]) -> tuple[float, float] | None:
    """The steps of all runs together, so that charts can be compared."""
    first = [run.metrics.first_step for run in runs if run.metrics.first_step is not None]
    last = [run.metrics.last_step for run in runs if run.metrics.last_step is not None]
    return (min(first), max(last)) if first else None
