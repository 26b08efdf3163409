"""The tables of a report: what was drawn, starts, checkpoints, bad data, the plan, the recipe."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from ibtrain.charts import number
from ibtrain.pages import table, text
from ibtrain.report.metrics import finite
from ibtrain.report.run import ReportedRun, flat
from ibtrain.report.starts import when

_MOST_RECIPE_CHARACTERS = 60_000
_MAKE_A_PLAN = (
    "<code>ibtrain plan RECIPE --gpu NAME --json &gt; RUN/plan.json</code> makes one to compare "
    "with"
)
_OF_INCIDENT = ("step", "dataset", "kind", "shard")


def runs_table(runs: Sequence[ReportedRun]) -> str:
    """Where each run is."""
    rows = [[value for _, value in run_facts(run)] for run in runs]
    columns = [name for name, _ in run_facts(runs[0])]
    return table(
        ["run", *columns],
        [[run.label, *row] for run, row in zip(runs, rows, strict=True)],
        caption="the runs",
    )


def run_facts(run: ReportedRun) -> list[tuple[str, str]]:
    """A run in a few numbers."""
    metrics = run.metrics
    step = metrics.last_step
    steps = run.steps
    rate = _typical(run, "samples_per_second")
    seconds = run.last_written
    again = sum(1 for start in run.starts if start.step)
    return [
        ("state", _state(run)),
        ("step", f"{_count(step)} of {_count(steps)}"),
        ("epoch", "" if metrics.epoch is None else f"{metrics.epoch:.2f}"),
        ("loss", _number(metrics.last.get("loss"))),
        ("samples/s", _number(rate)),
        ("samples", f"{sum(metrics.drawn.values()):,}"),
        ("starts", f"{len(run.starts):,}, resumed {again:,}"),
        ("last metrics", "" if seconds is None else when(seconds)),
    ]


def _state(run: ReportedRun) -> str:
    step, steps = run.metrics.last_step, run.steps
    done = step is not None and steps is not None and step >= steps
    return "done" if done else "going on, or stopped"


def mixture_section(runs: Sequence[ReportedRun]) -> str:
    """What of each dataset was asked for and what was drawn."""
    return "".join(_mixture(run, len(runs) > 1) for run in runs)


def _mixture(run: ReportedRun, named: bool) -> str:
    drawn = run.metrics.drawn
    total = sum(drawn.values())
    names = list(dict.fromkeys([*run.asked_shares, *drawn]))
    heading = f"<h3>{text(run.label)}</h3>" if named else ""
    if not names:
        return f"{heading}<p class=note>nothing is known of its mixture yet</p>"
    shares = {name: drawn[name] / total if total else 0.0 for name in names}
    longest = max(*shares.values(), *run.asked_shares.values(), 1e-9)
    rows = []
    for name in names:
        asked = run.asked_shares.get(name)
        bars = "".join(
            f'<rect class="{kind}" x="0" y="{top}" width="{100 * share / longest:.3f}" '
            f'height="{height}" rx="0.4"/>'
            for kind, share, top, height in (
                ("share", shares[name], 1, 11),
                ("size", asked or 0.0, 14, 5),
            )
        )
        asked_text = "unknown" if asked is None else f"{asked:.2%}"
        rows.append(
            f"<tr><th scope=row><bdi>{text(name)}</bdi></th><td class=bar><svg "
            f'viewBox="0 0 100 20" preserveAspectRatio="none" aria-hidden="true">{bars}</svg></td>'
            f"<td>{shares[name]:.2%}</td><td>{asked_text}</td><td class=wide>{drawn[name]:,}</td>"
            f"<td class=wide>{run.metrics.replaced[name]:,}</td></tr>"
        )
    note = (
        ""
        if run.asked_shares
        else ("<p class=note>what was asked for stands in checkpoints, of which there is none</p>")
    )
    return (
        f"{heading}<p class='note keys'><span class=key-share></span> drawn "
        f"<span class=key-size></span> asked for</p><table><caption>shares of the mixture of "
        f"{text(run.label)}</caption><thead><tr><th scope=col>dataset</th><td class=bar></td>"
        "<th scope=col>drawn</th><th scope=col>asked for</th><th scope=col class=wide>samples</th>"
        "<th scope=col class=wide>replaced</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>{note}"
    )


def starts_section(runs: Sequence[ReportedRun]) -> str:
    """Every start of every run."""
    rows = [
        [
            run.label,
            start.time,
            "unknown" if start.step is None else (f"{start.step:,}" if start.step else "beginning"),
            _count(start.world_size) if start.recorded else "not recorded",
            start.environment.get("host", ""),
            start.environment.get("device", ""),
            start.versions.get("ibtrain", ""),
        ]
        for run in runs
        for start in run.starts
    ]
    if not rows:
        return "<p class=note>no start is recorded</p>"
    columns = ["run", "started", "from step", "processes", "host", "device", "ibtrain"]
    return _of_runs(runs, columns, rows, "starts")


def checkpoints_section(runs: Sequence[ReportedRun]) -> str:
    """Every checkpoint that there is."""
    rows = [
        [
            run.label,
            one.name,
            f"{one.bytes / 1e6:,.1f} MB",
            when(one.seconds),
            _count(one.world_size),
            one.version,
        ]
        for run in runs
        for one in run.checkpoints
    ]
    if not rows:
        return "<p class=note>there is none yet</p>"
    columns = ["run", "step", "size", "written", "processes", "ibtrain"]
    return _of_runs(runs, columns, rows, "checkpoints")


def quarantine_section(runs: Sequence[ReportedRun]) -> str:
    """What was bad of the data."""
    counts = [
        [run.label, dataset, kind, f"{count:,}", f"{run.incidents.samples[dataset, kind]:,}"]
        for run in runs
        for (dataset, kind), count in sorted(run.incidents.counts.items())
    ]
    if not counts:
        return "<p class=note>no shard and no record was found to be bad</p>"
    rows = [
        [run.label, *(str(line.get(key, "")) for key in _OF_INCIDENT), _why(line)]
        for run in runs
        for line in run.incidents.first
    ]
    left = sum(run.incidents.total - len(run.incidents.first) for run in runs)
    more = f"<p class=note>{left:,} more stand in quarantine.jsonl</p>" if left else ""
    return (
        _of_runs(runs, ["run", "dataset", "kind", "times", "samples"], counts, "bad data, counted")
        + "<details><summary>one by one</summary>"
        + _of_runs(
            runs,
            ["run", *_OF_INCIDENT, "what was found"],
            rows,
            "bad data, one by one",
            prose="what was found",
        )
        + f"{more}</details>"
    )


def _of_runs(
    runs: Sequence[ReportedRun],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str,
    *,
    prose: str = "",
) -> str:
    """A table whose first column names the run, which is left out where there is one alone."""
    first = 0 if len(runs) > 1 else 1
    shown = list(columns[first:])
    words = [shown.index(prose)] if prose else []
    return table(shown, [row[first:] for row in rows], caption=caption, words=words)


def _why(line: dict[str, Any]) -> str:
    record = line.get("record")
    return f"{'' if record is None else f'record {record}: '}{line.get('reason', '')}"


def plan_section(run: ReportedRun) -> str:
    """The plan's figures for the run's sharding beside those that were measured."""
    if run.plan is None:
        return f"<p class=note>there is no plan.json; {_MAKE_A_PLAN}</p>"
    # Training writes what it took, and the plan behind it where one was made; `plan` the plan.
    within = run.plan.get("plan")
    plan = within if isinstance(within, dict) else run.plan
    sharding = str(run.plan.get("sharding") or run.value("sharding"))
    choices = plan.get("choices")
    if choices is None:
        because = f"{sharding}, because {run.plan.get('because', 'nobody says')}"
        return (
            f"<p class=note><bdi>{text(because, 600)}</bdi>; no plan was made: {_MAKE_A_PLAN}</p>"
        )
    choice = next(
        (c for c in choices if isinstance(c, dict) and c.get("sharding") == sharding)
        if isinstance(choices, list)
        else iter(()),
        None,
    )
    if choice is None:
        return f"<p class=note>plan.json says nothing of {text(sharding)}, which the run uses</p>"
    memory = choice.get("memory_bytes_per_gpu")
    total = finite(memory.get("total")) if isinstance(memory, dict) else None
    planned_rate = finite(choice.get("samples_per_second"))
    planned_step, planned_mfu = finite(choice.get("step_seconds")), finite(choice.get("mfu"))
    rate = _typical(run, "samples_per_second")
    batch = finite(run.value("training.global_batch"))
    step = batch / rate if batch and rate else None
    mfu = planned_mfu * planned_step / step if planned_mfu and planned_step and step else None
    peak = max((p.high for p in run.metrics.scalars["memory/device_gib"]), default=None)
    gpus = [finite(plan.get(key)) for key in ("nodes", "gpus_per_node")]
    world = gpus[0] * gpus[1] if gpus[0] and gpus[1] else None
    last = run.starts[-1].world_size if run.starts else None
    rows = [
        ["GPUs", _number(world), "unknown" if last is None else f"{last:,}", ""],
        _compared("seconds per step", planned_step, step),
        _compared("samples per second", planned_rate, rate),
        _compared("MFU in %", _times(planned_mfu, 100), _times(mfu, 100)),
        _compared("GiB of each GPU", _times(total, 2**-30), peak),
    ]
    words = f"{plan.get('device', '')}, {sharding}: {plan.get('because', '')}"
    note = f"<p class=note><bdi>{text(words, 600)}</bdi></p>"
    columns = ["", "planned", "measured", "measured / planned"]
    return note + table(columns, rows, caption=f"plan and measurement of {run.label}")


def _compared(name: str, planned: float | None, measured: float | None) -> list[str]:
    ratio = f"{measured / planned:.2f}" if planned and measured is not None else ""
    return [name, _number(planned), "not measured" if measured is None else number(measured), ratio]


def recipe_section(runs: Sequence[ReportedRun]) -> str:
    """In what the recipes differ, and each in full."""
    whole = "".join(
        f"<details><summary>recipe.yaml of {text(run.label)}</summary><pre tabindex=0>"
        f"{text(run.recipe_text, _MOST_RECIPE_CHARACTERS)}</pre></details>"
        for run in runs
        if run.recipe_text
    )
    if len(runs) == 1:
        return whole or "<p class=note>there is none</p>"
    values = [dict(flat(run.recipe_values)) for run in runs]
    keys = dict.fromkeys(key for one in values for key in one)
    differing = [
        [key, *(one.get(key, "not set") for one in values)]
        for key in keys
        if len({one.get(key) for one in values}) > 1
    ]
    if not differing:
        return f"<p class=note>the recipes are equal</p>{whole}"
    columns = ["key", *(run.label for run in runs)]
    return table(columns, differing[:200], caption="where the recipes differ") + whole


def environment_section(runs: Sequence[ReportedRun]) -> str:
    """What each run's last start ran on."""
    found = [
        {**run.starts[-1].environment, **run.starts[-1].versions} if run.starts else {}
        for run in runs
    ]
    keys = dict.fromkeys(key for one in found for key in one)
    if not keys:
        versions = {one.version for run in runs for one in run.checkpoints if one.version}
        of_checkpoints = f"; checkpoints were written by ibtrain {', '.join(sorted(versions))}"
        return (
            "<p class=note>no starts.jsonl was written, so it is not known"
            f"{text(of_checkpoints) if versions else ''}</p>"
        )
    rows = [[key, *(one.get(key, "") for one in found)] for key in keys]
    columns = ["", *(run.label for run in runs)]
    return table(columns, rows, caption="environment of the last start")


def _typical(run: ReportedRun, name: str) -> float | None:
    """The median along the curve, which warming up and pauses do not move."""
    points = run.metrics.scalars[name].points()
    return median(point.mean for point in points) if points else None


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _count(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _number(value: float | None) -> str:
    return "unknown" if value is None else number(value)
