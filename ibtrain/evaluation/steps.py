"""Several steps of a run evaluated, and the best told by a named mean of several benchmarks.

What LAVIS could not express: its best checkpoint is by one data set's validation split. Means are
of 100 times the metrics, as in the paper's tables.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ibtrain.distributed.ranks import on_rank_zero
from ibtrain.evaluation.benchmarks import Options
from ibtrain.evaluation.run import evaluate_benchmarks, joined
from ibtrain.files import write_whole
from ibtrain.run_directory import step_name, step_of, whole_steps

STEPS = "steps.json"
MEANS = {
    # Table 2 of the paper, and figure 4 (arXiv 2305.06500).
    "held_in": ("coco_caption", "okvqa", "aokvqa-direct", "textcaps"),
    "held_out": (
        *("gqa", "textvqa", "vsr", "hateful_memes", "iconqa", "scienceqa", "ivqa", "vizwiz"),
    ),
}
ALL = "all"


def evaluate_steps(
    run: Path,
    data: Path,
    benchmarks: Sequence[str] | None,
    out: Path,
    options: Options,
    steps: str,
    means: Mapping[str, Sequence[str]],
    select: str | None,
    **paths: Any,
) -> dict[str, Any]:
    """Evaluates steps of a run, each into OUT/step-N, and writes OUT/steps.json.

    Args:
        run: a run directory.
        data: as `evaluate_benchmarks`.
        benchmarks: as `evaluate_benchmarks`.
        out: where to write.
        options: how.
        steps: "all", or numbers with commas between.
        means: names of benchmarks by the name of their mean, beside those of MEANS.
        select: the mean by which the best step is told.
        paths: vocabularies and protocols, as `evaluate_benchmarks` takes them.

    Raises:
        ValueError: the run has no such step, or a mean is not known or is of a benchmark that was
            not evaluated.
    """
    ranks = joined()
    known = {**{name: tuple(own) for name, own in MEANS.items()}, **means}
    if select is not None and select != ALL and select not in known:
        raise ValueError(f"no mean is called {select!r}; there are {', '.join([ALL, *known])}")
    chosen = on_rank_zero(ranks, lambda: find_steps(run, steps))
    rows: list[dict[str, Any]] = []
    for step in chosen:
        directory = out / step_name(step)
        document = evaluate_benchmarks(
            run / "checkpoints" / step_name(step),
            *(data, benchmarks, directory, options),
            ranks=ranks,
            **paths,
        )
        values = {
            name: row["value"]
            for name, row in document["benchmarks"].items()
            if row["value"] is not None
        }
        wanted = {} if select is None else {select: known.get(select, tuple(values))}
        wanted |= {name: known[name] for name in means}
        own = {name: mean_of(values, names, name) for name, names in wanted.items()}
        rows.append({"step": step, "values": values, "means": own})
    best = None
    if select is not None:
        best = max(rows, key=lambda row: row["means"][select])["step"]
    document = {"select": select, "best": best, "steps": rows}

    def write() -> None:
        write_whole(out / STEPS, json.dumps(document, indent=2) + "\n")

    on_rank_zero(ranks, write)
    return document


def find_steps(run: Path, steps: str) -> list[int]:
    """The numbers of a run's steps that are asked for.

    Raises:
        ValueError: naming those that are there.
    """
    found = {number: path for path in whole_steps(run) if (number := step_of(path)) is not None}
    if not found:
        raise ValueError(f"{run} has no step to evaluate; name the directory of a run")
    if steps == "all":
        return sorted(found)
    asked = []
    for word in steps.split(","):
        if not word.strip().isdecimal() or int(word) not in found:
            there = ", ".join(map(str, sorted(found)))
            raise ValueError(f"{run} has no step {word.strip()!r}; there are {there}")
        asked.append(int(word))
    return sorted(set(asked))


def mean_of(values: Mapping[str, float], names: Sequence[str], mean: str) -> float:
    """The mean of some benchmarks; ValueError naming those that have no value."""
    lacking = [name for name in names if name not in values]
    if lacking or not names:
        raise ValueError(
            f"the mean {mean!r} is of {', '.join(names)}; not evaluated: {', '.join(lacking)}"
        )
    return sum(values[name] for name in names) / len(names)
