"""The report as people read it: one markdown page, its figures as JSON, plots."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

GIB = 2**30
DTYPES = ("bfloat16", "float16", "float32")
LOG_CHARACTERS = 200_000
"""Of each part that are kept."""

Document = dict[str, Any]


def write(document: Document, out: Path, logs: Sequence[Path]) -> None:
    """Replaces OUT/DATE-CARD.{md,json}, the plots beside them, and log.txt if there are logs."""
    stem = f"{document['date'][:10]}-{card_name(document)}"
    plots = [path for path in (_plot_steps(document, out, stem),) if path]
    picture = out / f"{stem}-attention.png"
    if logs and (logs[0].parent / "attention.png").is_file():
        shutil.copyfile(logs[0].parent / "attention.png", picture)
    if picture.is_file() and _part(document, "attention"):
        plots.append(picture)
    _replace(out / f"{stem}.json", json.dumps(document, indent=1) + "\n")
    _replace(out / f"{stem}.md", "\n".join(lines(document, [plot.name for plot in plots])) + "\n")
    told = [(log.stem, log.read_text(errors="replace")[-LOG_CHARACTERS:]) for log in logs]
    if not told:
        return
    _replace(out / "log.txt", "\n".join(f"=== {name}\n{text}" for name, text in told))


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.writing")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def card_name(document: Document) -> str:
    """A file's part of the card's name: NVIDIA H100 80GB HBM3 is h100-80gb-hbm3."""
    if document["rehearsal"]:
        return "rehearsal"
    name = _facts(document, "machine").get("hardware", {}).get("name", "gpu")
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return words.removeprefix("nvidia-") or "gpu"


def lines(document: Document, plots: Sequence[str]) -> Iterator[str]:
    """The page."""
    machine = _facts(document, "machine")
    hardware, versions = machine.get("hardware", {}), machine.get("versions", {})
    yield f"# On a GPU: {hardware.get('name', 'not known')}"
    yield ""
    if document["rehearsal"]:
        yield "A rehearsal on a CPU at tiny sizes: no figure here says anything about a GPU."
        yield ""
    runs = f" in {document['merged']} runs" if "merged" in document else ""
    when = f"{document['date']}, commit {document['commit']}"
    yield f"{when}, {document['seconds']:.0f} s in all{runs}."
    yield f"Driver {hardware.get('driver', 'not known')}; " + ", ".join(
        f"{name} {version}" for name, version in versions.items() if version != "none"
    )
    yield ""
    if "launch_microseconds" in machine:
        yield (
            f"{machine['host']['cores']} host cores; the host needs "
            f"{machine['launch_microseconds']:.1f} µs to start a kernel by torch, and short steps "
            "are as fast as that."
        )
        yield ""
    yield "    python tools/gpu_report.py --out DIR" + " --rehearse" * document["rehearsal"]
    yield ""
    yield from _parts(document)
    yield from _kernels(document)
    yield from _training(document)
    yield from _steps(document)
    yield from _planner(document)
    yield from _attention(document)
    for plot in plots:
        yield f"![{plot}]({plot})"
        yield ""


def _part(document: Document, name: str) -> dict[str, Any]:
    return dict(document["parts"].get(name, {}))


def _facts(document: Document, name: str) -> dict[str, Any]:
    return dict(_part(document, name).get("facts", {}))


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(map(str, row)) + " |"
    yield ""


def _parts(document: Document) -> Iterator[str]:
    yield from _table(
        ("part", "state", "seconds", "faults", "commit"),
        [
            (
                name,
                part["state"],
                f"{part['wall_seconds']:.0f}",
                len(part["faults"]),
                part.get("commit", document["commit"]),
            )
            for name, part in document["parts"].items()
        ],
    )
    for name, part in document["parts"].items():
        for fault in part["faults"]:
            yield f"- **{name}**: {fault}"
    yield ""


def _kernels(document: Document) -> Iterator[str]:
    part = _part(document, "kernels")
    if not part:
        return
    rows = part["rows"]
    yield "## Kernels against fp64"
    yield ""
    right = sum(not row.get("fault") for row in rows)
    yield (
        f"{right} of {len(rows)} cases right, of {part['facts'].get('cases', '?')} that the "
        "dispatch can choose. The largest ||error|| / ||reference|| of each kind:"
    )
    yield ""
    worst: dict[str, list[float]] = {}
    for row in rows:
        dtype = next((each for each in DTYPES if each in row["name"]), "")
        kind = f"{row['name'].split()[0]} {dtype}"
        for name, value in row.get("errors", {}).items():
            known = worst.setdefault(kind, [0.0, 0.0])
            place = 0 if name.startswith("output") else 1
            known[place] = max(known[place], value)
    yield from _table(
        ("kind", "outputs", "gradients"),
        [(kind, f"{out:.1e}", f"{back:.1e}") for kind, (out, back) in sorted(worst.items())],
    )


def _training(document: Document) -> Iterator[str]:
    part = _part(document, "training")
    if not part:
        return
    yield "## Training, killed and gone on"
    yield ""
    yield from _table(
        ("setting", "loss", "same bits", "largest difference", "exports, logit error"),
        [
            (
                row["name"],
                f"{row['losses'][0]:.3f} → {row['losses'][-1]:.3f} ({len(row['losses'])} steps)",
                "yes" if row["resumed_with_the_same_bits"] else "no",
                f"{row['largest_difference']:.1e}",
                ", ".join(
                    f"{kind} {proof.get('max_abs_logit_error', float('nan')):.1e}"
                    for kind, proof in row["exports"].items()
                ),
            )
            for row in part["rows"]
        ],
    )


def step_rows(document: Document) -> list[dict[str, Any]]:
    """What was measured of steps, with the part's name and, where the planner ran, MFU."""
    rate = None
    from ibtrain.planning.devices import DEVICES

    planned = _part(document, "planner")
    if planned and planned["facts"].get("device") in DEVICES:
        rate = DEVICES[planned["facts"]["device"]].half_rate
    flops = {
        row["model"]: row["flops_per_sample"]
        for row in planned.get("rows", ())
        if not row["recompute"]
    }
    found = []
    for name, part in document["parts"].items():
        for row in part["rows"] if name.startswith("step-") else ():
            model = "-".join(name.split("-")[:2]) if "t5" not in name else "step-t5-xxl"
            known = dict(row) | {"part": name, "model": model}
            if rate and model in flops and "mean_seconds" in row and row["kind"] == "mixture":
                known["mfu"] = flops[model] * row["samples"] / (row["mean_seconds"] * rate)
            found.append(known)
    return found


def _steps(document: Document) -> Iterator[str]:
    rows = step_rows(document)
    if not rows:
        return
    yield "## A step at the true size"
    yield ""
    yield (
        "Random weights, frozen base, bf16, one GPU; micro-batches of samples with the lengths "
        "of the paper's mixture (tools/gpu_parts/lengths.py), one a step. *mixture*: the mean of "
        "four such batches; *longest*: every sample as long as the recipes allow. MFU counts what "
        "the model needs of the samples themselves, once, over the data sheet's dense rate."
    )
    yield ""
    cells = []
    for row in rows:
        told = [row["part"], row["kind"], row["samples"], "yes" if row["recompute"] else "no"]
        if "out_of_memory" in row:
            cells.append([*told, "out of memory", "", "", "", ""])
            continue
        cells.append(
            [
                *told,
                f"{1e3 * row['mean_seconds']:.0f}",
                f"{row['samples_per_second']:.1f}",
                f"{row['mfu']:.0%}" if "mfu" in row else "",
                f"{row['peak_bytes'] / GIB:.1f}",
                f"{row['used_bytes'] / GIB:.1f}",
            ]
        )
    head = (
        "part",
        "batch",
        "samples",
        "recompute",
        "ms",
        "samples/s",
        "MFU",
        "peak GiB",
        "card GiB",
    )
    yield from _table(head, cells)
    yield from _ratios(rows)
    for name, part in document["parts"].items():
        if name.startswith("step-") and part["facts"].get("kernels"):
            facts = part["facts"]
            yield (
                f"{name}, one step without recomputation: {facts['launches']} launches, "
                f"{facts['device_milliseconds']:.0f} ms of the device. Most of it:"
            )
            yield ""
            yield from _table(
                ("kernel", "ms", "launches"),
                [
                    (f"`{each['name'][:90]}`", f"{each['milliseconds']:.2f}", each["launches"])
                    for each in facts["kernels"][:12]
                ],
            )


def _ratios(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Ours beside transformers', at the same batches."""
    ours = {
        (row["part"], row["samples"], row["recompute"]): row
        for row in rows
        if row["kind"] == "mixture"
    }
    for (part, samples, recompute), theirs in ours.items():
        mine = ours.get((part.removesuffix("-transformers"), samples, recompute))
        if not part.endswith("-transformers") or not mine:
            continue
        words = (
            f"{mine['part']}, {samples} samples, {'with' if recompute else 'without'} recomputation"
        )
        if "mean_seconds" in mine and "mean_seconds" in theirs:
            real = sum(mine["tokens"]) / sum(mine["padded_tokens"])
            yield (
                f"- {words}: {theirs['mean_seconds'] / mine['mean_seconds']:.2f} times as fast as "
                f"transformers padded, {mine['peak_bytes'] / max(1, theirs['peak_bytes']):.2f} of "
                f"its peak memory ({real:.0%} of its tokens are real)"
            )
        elif "mean_seconds" in mine:
            yield f"- {words}: runs; transformers padded is out of memory"
    yield ""


def _planner(document: Document) -> Iterator[str]:
    part = _part(document, "planner")
    if not part or not part["rows"]:
        return
    measured = {}
    for row in step_rows(document):
        sharding = "zero3" if row["part"].endswith("zero3") else "zero2"
        alike = row["kind"] != "mixture" or row["samples"] == part["facts"].get("samples")
        if "mean_seconds" in row and "transformers" not in row["part"] and alike:
            measured[row["model"], sharding, row["recompute"], row["kind"]] = row
    cells = []
    for row in part["rows"]:
        key = (row["model"], row["sharding"], row["recompute"])
        typical, most = measured.get((*key, "mixture")), measured.get((*key, "longest"))
        if not typical and not most:
            continue
        memory = row["memory_bytes"]
        tensors = memory["total"] - memory["reserve"]
        cells.append(
            [
                row["model"].removeprefix("step-"),
                row["sharding"],
                "yes" if row["recompute"] else "no",
                f"{1e3 * row['step_seconds']:.0f}",
                f"{1e3 * typical['mean_seconds']:.0f}" if typical else "",
                f"{typical['mean_seconds'] / row['step_seconds']:.2f}" if typical else "",
                f"{tensors / GIB:.1f}, {memory['total'] / GIB:.1f}",
                f"{most['peak_bytes'] / GIB:.1f}, {most['used_bytes'] / GIB:.1f}" if most else "",
            ]
        )
    yield "## The planner beside it"
    yield ""
    yield (
        "Time of the mixture's batches; memory of the longest: of tensors, and of the whole card."
    )
    yield ""
    head = ("model", "sharding", "recompute", "ms planned", "measured", "ratio")
    yield from _table((*head, "GiB planned", "measured"), cells)


def _attention(document: Document) -> Iterator[str]:
    part = _part(document, "attention")
    if not part or not part["rows"]:
        return
    yield "## Attention and elementwise kernels"
    yield ""
    limits = part["facts"].get("limits", {})
    if limits:
        yield (
            f"A large matrix product runs at {limits['matmul_tflops']:.0f} TFLOP/s, a large copy "
            f"at {limits['copy_gigabytes_per_second']:.0f} GB/s, read and written. *of limit*: the "
            "time that these two allow over the time taken."
        )
        yield ""
    cells = []
    for row in part["rows"]:
        if row["status"] != "measured":
            continue
        cells.append(
            (
                row["shape"],
                row["contender"] + " *" * row["chosen"],
                row["passes"],
                f"{row['milliseconds']:.3f}",
                f"{row['tflops']:.0f}" if row["tflops"] else "",
                f"{row['of_limit']:.0%}" if row["of_limit"] else "",
                f"{row['of_copy_bandwidth']:.0%}" if row["of_copy_bandwidth"] else "",
            )
        )
    head = ("shape", "contender (* dispatched)", "passes", "ms", "TFLOP/s", "of limit", "of copy")
    yield from _table(head, cells)
    for verdict in part["facts"].get("verdicts", ()):
        yield f"- {verdict['state']}: {verdict['target']}"
        for name, value in sorted(verdict["figures"].items(), key=lambda item: item[1]):
            yield f"    - {value:.2f}  {name}"
    yield ""


def _plot_steps(document: Document, out: Path, stem: str) -> Path | None:
    """Samples a second and peak memory of every step that was measured."""
    rows = [row for row in step_rows(document) if row["kind"] == "mixture" and "seconds" in row]
    if not rows:
        return None
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [
        f"{row['part'].removeprefix('step-')}, {row['samples']} samples"
        f"{', recomputed' if row['recompute'] else ''}"
        for row in rows
    ]
    colours = ["#9aa0a6" if "transformers" in row["part"] else "#e6550d" for row in rows]
    figure, places = pyplot.subplots(1, 2, figsize=(11, 1 + 0.32 * len(rows)), sharey=True)
    columns = (
        ("samples a second", [row["samples_per_second"] for row in rows]),
        ("peak memory, GiB", [row["peak_bytes"] / GIB for row in rows]),
    )
    for place, (title, values) in zip(places, columns, strict=True):
        bars = place.barh(range(len(rows)), values, color=colours)
        place.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
        place.set_yticks(range(len(rows)), names, fontsize=8)
        place.set_title(title, fontsize=9)
        place.margins(x=0.15)
        for side in ("top", "right"):
            place.spines[side].set_visible(False)
    places[0].invert_yaxis()
    figure.tight_layout()
    path = out / f"{stem}-steps.png"
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
