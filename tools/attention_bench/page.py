"""The tables, the picture and the files of a run."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from attention_bench.bench import Bench
from attention_bench.rows import Row, verdicts
from attention_bench.shapes import FORWARD

HEADS = {
    "attention": ("forward ms", "TFLOP/s", "of limit", "fwd+bwd ms", "TFLOP/s", "of limit"),
    "elementwise": ("forward ms", "GB/s", "of copy", "backward ms", "GB/s", "of copy"),
}


def table(rows: list[Row], kind: str) -> list[list[str]]:
    """Cells by line, a heading first: a contender's two directions in one line."""
    head = ["shape", "contender", *HEADS[kind], "host ms", "remarks"]
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        if row.kind == kind:
            groups.setdefault(row.shape, {}).setdefault(row.contender, []).append(row)
    lines = [
        [shape, name + (" *" if found[0].chosen else ""), *_cells(found)]
        for shape, by_name in groups.items()
        for name, found in by_name.items()
    ]
    return [head, *lines]


def _cells(found: list[Row]) -> list[str]:
    def text(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    cells, remarks = [], []
    for row in found[:2]:
        rate, share = (row.tflops, row.of_limit)
        if row.kind == "elementwise":
            rate, share = row.gigabytes_per_second, row.of_copy_bandwidth
        cells += [text(row.milliseconds, ".4f"), text(rate, ".1f"), text(share, ".0%")]
    row, last = found[0], found[-1]
    cells += [""] * (6 - len(cells))
    if last.status != "measured":
        remarks.append(f"{last.status}: {last.reason}")
    if row.forward_error is not None and row.gradient_error is not None:
        remarks.append(f"errors {row.forward_error:.0e}, {row.gradient_error:.0e}")
    if row.compile_seconds is not None:
        remarks.append(f"compiled in {row.compile_seconds:.0f} s")
    host = " / ".join(text(each.host_milliseconds, ".3f") for each in found[:2])
    return [*cells, host.strip(" /"), "; ".join(remarks)]


def aligned(lines: list[list[str]]) -> list[str]:
    """Columns under one another; the shape is said once."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown, before = [], ""
    for line in lines:
        cells = ["" if line[0] == before else line[0], *line[1:]]
        before = line[0]
        left = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(cells[2:-1], widths[2:-1], strict=True)]
        shown.append("  ".join((*left, *right, cells[-1])).rstrip())
    return shown


def summary(report: dict[str, Any]) -> list[str]:
    """What stands above the tables."""
    limits, versions = report["limits"], report["versions"]
    return [
        *report["notes"],
        f"{report['date']}, {report['hardware']['name']}, driver {report['hardware']['driver']}, "
        f"torch {versions['torch']}, triton {versions['triton']}, CUDA {versions['cuda']}, "
        f"commit {report['commit']}, {report['dtype']}",
        f"Measured limits: matmul {limits['matmul_tflops']:.1f} TFLOP/s, "
        f"copy {limits['copy_gigabytes_per_second']:.0f} GB/s.",
    ]


def markdown(report: dict[str, Any], rows: list[Row]) -> str:
    """The report for docs/benchmarks."""
    parts = ["# Attention and elementwise kernels", *summary(report)]
    parts.append(f"Command: `python tools/bench_attention.py {report['arguments']}`")
    for kind in HEADS:
        head, *lines = table(rows, kind)
        marks = ["---"] * 2 + ["---:"] * (len(head) - 3) + ["---"]
        body = "\n".join(f"| {' | '.join(cells)} |" for cells in (head, marks, *lines))
        parts.append(f"## {kind.capitalize()}\n\n{body}")
    told = "\n".join(line for verdict in verdicts(rows) for line in ["", *verdict.lines()])
    parts.append(f"## Targets\n\n```\n{told.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def picture(rows: list[Row], title: str, path: Path) -> str:
    """Draws a panel for each shape; returns what kept it from being drawn."""
    try:
        import matplotlib
    except ImportError as failure:
        return f"No picture is drawn: {failure}."
    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = [row for row in rows if row.milliseconds]
    panels = list(dict.fromkeys((row.kind, row.shape) for row in measured))
    if not panels:
        return "No picture is drawn: nothing was measured."
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(
        *(lines, columns), figsize=(4.6 * columns, 3 * lines + 0.6), squeeze=False
    )
    for panel in axes.flat[len(panels) :]:
        panel.axis("off")
    for panel, (kind, shape) in zip(axes.flat, panels, strict=False):
        found = [row for row in measured if (row.kind, row.shape) == (kind, shape)]
        names = list(dict.fromkeys(row.contender for row in found))
        longest = max(row.milliseconds or 0 for row in found)
        for row in found:
            second = row.passes != FORWARD
            height = names.index(row.contender) + (0.2 if second else -0.2)
            colour = ("#9ecae1", "#3182bd") if row.contender != "triton" else ("#fdae6b", "#e6550d")
            panel.barh(height, row.milliseconds, 0.38, color=colour[second])
            speed = f"{row.tflops:.3g} TFLOP/s" if row.tflops else f"{row.of_copy_bandwidth:.0%}"
            panel.text(
                *((row.milliseconds or 0) + 0.01 * longest, height),
                f"{row.milliseconds:.3g} ms, {speed}",
                va="center",
                fontsize=6.5,
            )
        chosen = {row.contender for row in found if row.chosen}
        panel.set_yticks(range(len(names)), [name + " *" * (name in chosen) for name in names])
        panel.set_xlim(0, 1.55 * longest)
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.tick_params(labelsize=8)
        panel.set_title(shape, fontsize=9)
        panel.set_xlabel("ms", fontsize=8)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    figure.suptitle(
        f"{title}\nlight: forward; dark: forward+backward (elementwise: backward, % of copy "
        "bandwidth); orange: Triton; *: dispatched",
        fontsize=9,
    )
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.2 / (3 * lines + 0.6)))
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return ""


def write(report: dict[str, Any], bench: Bench, out: Path | None) -> None:
    """JSON and markdown as they stand."""
    report["rows"] = [dataclasses.asdict(row) for row in bench.rows]
    report["choices"] = bench.choices
    report["left_out"] = sorted(
        {f"{row.shape}: {row.contender}" for row in bench.rows if row.status == "left out"}
    )
    report["verdicts"] = [
        {**dataclasses.asdict(verdict), "state": verdict.state} for verdict in verdicts(bench.rows)
    ]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report, indent=1)
        (out / "attention.json").write_text(text + "\n", encoding="utf-8")
        (out / "attention.md").write_text(markdown(report, bench.rows), encoding="utf-8")
