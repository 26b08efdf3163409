"""What metrics.jsonl says of a run: a thinned series of each scalar, and sums over all of it."""

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ibtrain.report.lines import Unread, objects, whole_number
from ibtrain.report.thinning import Thinned

METRICS = "metrics.jsonl"
MOST_DATASETS = 200
"""A mixture has some dozens; what a file names beyond that is counted, not kept."""
_LONGEST_NAME = 200
SCALARS = (
    "loss",
    "learning_rate",
    "gradient_norm",
    "samples_per_second",
    "answer_tokens_per_second",
    "data_wait",
    "memory/host_gib",
    "memory/device_gib",
)


@dataclass
class Metrics:
    """What a run reported."""

    scalars: dict[str, Thinned] = field(default_factory=lambda: {n: Thinned() for n in SCALARS})
    loss_by_dataset: dict[str, Thinned] = field(default_factory=dict)
    drawn: Counter[str] = field(default_factory=Counter)
    """Samples of each dataset that were trained on."""
    replaced: Counter[str] = field(default_factory=Counter)
    """Draws of each dataset that another sample took the place of."""
    not_finite: Counter[str] = field(default_factory=Counter)
    """Lines in which a scalar was not finite."""
    last: dict[str, Any] = field(default_factory=dict)
    lines: int = 0
    first_step: int | None = None
    last_step: int | None = None
    epoch: float | None = None
    backward: int = 0
    """Lines whose step is not above the one before: work that was lost and done again."""
    names: set[str] = field(default_factory=set)
    """Datasets that something is known of."""
    left_out: int = 0
    """Values of datasets beyond MOST_DATASETS."""
    unread: Unread = field(default_factory=Unread)


def read_metrics(run: Path) -> Metrics:
    """Reads a run's metrics, of any number of lines, in bounded memory.

    Raises:
        OSError: the file cannot be read.
    """
    metrics = Metrics()
    for line in objects(run / METRICS, metrics.unread):
        step = whole_number(line.get("step"))
        if step is None:
            metrics.unread.damaged += 1
            continue
        _take_in(metrics, step, line)
    return metrics


def _take_in(metrics: Metrics, step: int, line: dict[str, Any]) -> None:
    metrics.lines += 1
    metrics.backward += metrics.last_step is not None and step <= metrics.last_step
    metrics.first_step = step if metrics.first_step is None else metrics.first_step
    metrics.last_step = step
    epoch = finite(line.get("epoch"))
    metrics.epoch = metrics.epoch if epoch is None else epoch
    for name in SCALARS:
        outer, _, inner = name.partition("/")
        found = line.get(outer)
        if inner:
            found = found.get(inner, "") if isinstance(found, dict) else ""
        value = finite(found)
        if value is not None:
            metrics.scalars[name].add(step, value)
            metrics.last[name] = value
        elif found is None and outer in line:
            metrics.not_finite[name] += 1
    for name, value in _by_dataset(metrics, line.get("loss_by_dataset")):
        metrics.loss_by_dataset.setdefault(name, Thinned()).add(step, value)
    for name, value in _by_dataset(metrics, line.get("samples_by_dataset")):
        metrics.drawn[name] += int(value)
    for name, value in _by_dataset(metrics, line.get("quarantined")):
        metrics.replaced[name] += int(value)


def _by_dataset(metrics: Metrics, found: Any) -> list[tuple[str, float]]:
    """(dataset, number) pairs of a mapping, of datasets that there is room for."""
    if not isinstance(found, dict):
        return []
    pairs = []
    for name, value in found.items():
        number = finite(value)
        if name not in metrics.names and len(metrics.names) >= MOST_DATASETS:
            metrics.left_out += 1
        elif number is not None and len(name) <= _LONGEST_NAME:
            metrics.names.add(name)
            pairs.append((name, number))
    return pairs


def finite(value: Any) -> float | None:
    """A number that is one, None for anything else."""
    if type(value) is float:
        return value if math.isfinite(value) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
