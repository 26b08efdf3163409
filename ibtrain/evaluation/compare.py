"""Two evaluations of the same benchmarks, held against each other by a paired bootstrap."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ibtrain.data.answering import METRICS
from ibtrain.evaluation.answered import Answered
from ibtrain.evaluation.intervals import percentile_interval
from ibtrain.evaluation.metrics import metric
from ibtrain.evaluation.report import PREDICTIONS, RESULTS
from ibtrain.files import read_json

_LONGEST_LINE = 1 << 24
_OWN = ("benchmark", "weights", "question_type", "value", "correct")


@dataclass(frozen=True)
class Comparison:
    """A minus B on one benchmark, over the records that both have answered."""

    benchmark: str
    metric: str
    a: float
    b: float
    difference: float
    interval: tuple[float, float]
    a_better: float
    """The share of bootstrap samples in which A is better; ties count half."""
    n: int
    only_a: int
    only_b: int
    notes: tuple[str, ...] = ()

    def sentence(self) -> str:
        """For people."""
        low, high = (100 * end for end in self.interval)
        verdict = "no clear difference"
        if low > 0 or high < 0:
            verdict = "A is better" if low > 0 else "B is better"
        left = f"; left out: {self.only_a} of A, {self.only_b} of B" * bool(
            self.only_a + self.only_b
        )
        notes = "".join(f"; {note}" for note in self.notes)
        return (
            f"{self.benchmark:24} {self.metric:26} A {100 * self.a:.2f}  B {100 * self.b:.2f}  "
            f"A - B {100 * self.difference:+.2f} [{low:+.2f}, {high:+.2f}]  n={self.n}  "
            f"{verdict}{left}{notes}"
        )


def compare(a: Path, b: Path) -> list[Comparison]:
    """Compares two directories that `ibtrain evaluate` wrote.

    Raises:
        ValueError: one of them is none, or they have no scored benchmark in common.
    """
    documents = [_results(directory) for directory in (a, b)]
    common = [name for name in documents[0] if name in documents[1]]
    if not common:
        raise ValueError(
            f"{a} and {b} have no benchmark in common: {', '.join(documents[0]) or 'none'} and "
            f"{', '.join(documents[1]) or 'none'}"
        )
    rows = [_predictions(directory, set(common)) for directory in (a, b)]
    found = []
    for name in common:
        own = documents[0][name], documents[1][name]
        if own[0]["metric"] != own[1]["metric"]:
            raise ValueError(
                f"{name} is scored by {own[0]['metric']} in {a} and by {own[1]['metric']} in {b}"
            )
        one = _compared(name, str(own[0]["metric"]), rows[0].get(name, {}), rows[1].get(name, {}))
        if one is not None:
            found.append(_with_notes(one, own))
    if not found:
        raise ValueError(f"{a} and {b} have no scored record in common")
    return found


def _with_notes(one: Comparison, rows: tuple[dict[str, Any], dict[str, Any]]) -> Comparison:
    """What differs in how the two were made."""
    from dataclasses import replace

    notes = []
    about = [row.get("about") if isinstance(row.get("about"), dict) else {} for row in rows]
    for key, said in (
        ("sources", "annotation files"),
        ("decoding", "decoding"),
        ("vocabulary", "vocabulary"),
    ):
        if about[0].get(key) != about[1].get(key):  # type: ignore[union-attr]
            notes.append(f"another {said}")
    return replace(one, notes=tuple(notes))


def _compared(
    name: str, metric_name: str, a: dict[str, Answered], b: dict[str, Answered]
) -> Comparison | None:
    if metric_name not in METRICS:
        raise ValueError(f"{name}: no metric is called {metric_name!r}")
    by_name = metric(metric_name)
    shared = [identity for identity in a if identity in b]
    samples = [[own[identity] for identity in shared] for own in (a, b)]
    values = [by_name.values(own) if own else [] for own in samples]
    counts = [
        index
        for index in range(len(shared))
        if values[0][index] is not None and values[1][index] is not None
    ]
    if not counts:
        return None
    sides = []
    for own, numbers in zip(samples, values, strict=True):
        kept = [number for index in counts if (number := numbers[index]) is not None]
        sides.append(([own[index] for index in counts], kept))
    totals = [by_name.aggregate(*side) for side in sides]
    differences = by_name.paired(sides[0], sides[1])
    better = float(np.mean(differences > 0) + 0.5 * np.mean(differences == 0))
    return Comparison(
        benchmark=name,
        metric=metric_name,
        a=totals[0],
        b=totals[1],
        difference=totals[0] - totals[1],
        interval=percentile_interval(differences),
        a_better=better,
        n=len(counts),
        only_a=len(a) - len(shared),
        only_b=len(b) - len(shared),
    )


def _results(directory: Path) -> dict[str, dict[str, Any]]:
    document = read_json(directory / RESULTS, "name the directory that `ibtrain evaluate` wrote")
    benchmarks = document.get("benchmarks")
    if not isinstance(benchmarks, dict) or not all(
        isinstance(row, dict) and "metric" in row for row in benchmarks.values()
    ):
        raise ValueError(f"{directory / RESULTS}: no results of an evaluation")
    return benchmarks


def _predictions(directory: Path, wanted: set[str]) -> dict[str, dict[str, Answered]]:
    """Scored records by benchmark and id; one that stands twice is numbered."""
    found: dict[str, dict[str, Answered]] = {name: {} for name in wanted}
    for number, row in _rows(directory / PREDICTIONS):
        name = row.get("benchmark")
        if name not in wanted:
            continue
        try:
            answers = [
                {"text": text, "weight": weight}
                for text, weight in zip(row["answers"], row["weights"], strict=True)
            ]
            fields = {key: value for key, value in row.items() if key not in _OWN}
            one = Answered.from_json({**fields, "answers": answers})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{directory / PREDICTIONS}:{number}: {error}") from error
        if one.answers and not one.missing:
            own = found[str(name)]
            own[one.id if one.id not in own else f"{one.id} #{one.index}"] = one
    return found


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if not path.is_file():
        raise ValueError(f"{path} is missing; evaluate once more")
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_LONGEST_LINE + 1):
            number += 1
            if len(line) > _LONGEST_LINE:
                raise ValueError(f"{path}:{number}: longer than {_LONGEST_LINE} bytes")
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}:{number}: not readable as JSON: {error}") from error
            if isinstance(row, dict):
                yield number, row
