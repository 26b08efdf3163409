"""What a run directory tells, read without changing anything in it and without trusting it."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ibtrain.config import Recipe
from ibtrain.files import FileError, read_json, refuse_unbounded_yaml
from ibtrain.report.lines import Unread, objects, whole_number
from ibtrain.report.metrics import METRICS, Metrics, finite, read_metrics
from ibtrain.report.starts import Start, read_starts
from ibtrain.run_directory import (
    STARTS,
    STATE,
    RunDirectoryError,
    checkpoints,
    step_of,
    whole_steps,
)

RECIPE, PLAN, QUARANTINE = "recipe.yaml", "plan.json", "quarantine.jsonl"
MOST_CHECKPOINTS = 200
MOST_INCIDENTS = 40
_MOST_KINDS = 300
# What YAML's constructors raise for a value that does not fit its tag (a 13th month, !!bool 5).
_OF_YAML = (ValueError, TypeError, LookupError, AttributeError)


@dataclass(frozen=True)
class Checkpoint:
    """A step directory; what its state tells, where it can be read."""

    name: str
    step: int | None
    bytes: int
    seconds: float
    """When it was written, since 1970."""
    world_size: int | None
    version: str


@dataclass
class Incidents:
    """What quarantine.jsonl tells: counts by dataset and kind, and the first ones in full."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    samples: Counter[tuple[str, str]] = field(default_factory=Counter)
    first: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0


@dataclass
class ReportedRun:
    """One run."""

    path: Path
    label: str
    """What it is called on the page."""
    metrics: Metrics
    starts: list[Start]
    checkpoints: list[Checkpoint]
    incidents: Incidents
    recipe_text: str
    recipe_values: dict[str, Any]
    recipe: Recipe | None
    """None where the recipe is not there, or is of another version."""
    asked_shares: dict[str, float]
    """Of the mixture, from the newest checkpoint."""
    plan: dict[str, Any] | None
    last_written: float | None
    """When the last line of metrics was written, since 1970."""
    notes: list[str]
    """What is missing or damaged, in sentences."""

    @property
    def steps(self) -> int | None:
        """How many it is to do."""
        return whole_number(self.value("training.steps"))

    def value(self, key: str) -> Any:
        """A value of the recipe as it is written there, None where it is not."""
        found: Any = self.recipe_values
        for word in key.split("."):
            found = found.get(word) if isinstance(found, dict) else None
        return found


def read_run(path: Path, label: str) -> ReportedRun:
    """Reads a run directory, of a run that is over, goes on or was killed.

    Raises:
        RunDirectoryError: it is none.
        OSError: a file of it cannot be read.
    """
    check_run(path)
    notes: list[str] = []
    metrics = read_metrics(path)
    _note_metrics(metrics, notes)
    text, values, recipe = _read_recipe(path, notes)
    unread = Unread()
    starts = read_starts(path, unread)
    if not starts:
        notes.append(
            f"there is neither {STARTS} nor a TensorBoard file: how often it was started is unknown"
        )
    found, state = _read_checkpoints(path, notes)
    incidents = _read_incidents(path, unread)
    if unread.damaged:
        notes.append(f"{unread.damaged:,} lines of {STARTS} or {QUARANTINE} cannot be read")
    file = path / METRICS
    return ReportedRun(
        path=path,
        label=label,
        metrics=metrics,
        starts=starts,
        checkpoints=found,
        incidents=incidents,
        recipe_text=text,
        recipe_values=values,
        recipe=recipe,
        asked_shares=_shares(state),
        plan=_read_plan(path, notes),
        last_written=file.stat().st_mtime if file.is_file() else None,
        notes=notes,
    )


def check_run(path: Path) -> None:
    """Refuses what is no run directory.

    Raises:
        RunDirectoryError: saying what to give instead.
    """
    if any((path / name).is_file() for name in (RECIPE, METRICS)) and not _is_export(path):
        return
    if whole_steps(path):
        return
    if not path.exists():
        found = "is not there"
    elif step_of(path) is not None:
        found = f"is one step; give its run, {path.absolute().parent.parent}"
    elif _is_export(path):
        found = "is an export"
    else:
        found = f"is no run: it holds neither {RECIPE} nor {METRICS} nor checkpoints"
    raise RunDirectoryError(
        f"{path} {found}; a run directory is what `ibtrain train` writes, its recipe's output"
    )


def _is_export(path: Path) -> bool:
    return (path / "export_report.json").is_file()


def _note_metrics(metrics: Metrics, notes: list[str]) -> None:
    if not metrics.lines:
        notes.append(f"{METRICS} has no line yet, so there are no curves")
    if metrics.unread.damaged:
        notes.append(f"{metrics.unread.damaged:,} lines of {METRICS} cannot be read")
    if metrics.unread.half_written:
        notes.append(f"the last line of {METRICS} is half written: the run goes on or was killed")
    if metrics.backward:
        notes.append(
            f"{metrics.backward:,} lines of {METRICS} are of steps that were logged before; curves "
            "show the mean of both"
        )
    for name, count in metrics.not_finite.items():
        notes.append(f"{name} was not finite in {count:,} lines of {METRICS}")
    if metrics.left_out:
        notes.append(f"{metrics.left_out:,} values of further datasets in {METRICS} are left out")


def _read_recipe(path: Path, notes: list[str]) -> tuple[str, dict[str, Any], Recipe | None]:
    """Its text, its values as they stand there (no interpolation), and the recipe."""
    file = path / RECIPE
    if not file.is_file():
        notes.append(f"{RECIPE} is missing: what the run was to do is unknown")
        return "", {}, None
    try:
        refuse_unbounded_yaml(file)
        text = file.read_text(encoding="utf-8", errors="replace")
        values = yaml.safe_load(text)
    except (*_OF_YAML, RecursionError, yaml.YAMLError) as error:
        notes.append(f"{RECIPE} cannot be read ({str(error)[:300]})")
        return "", {}, None
    if not isinstance(values, dict):
        notes.append(f"{RECIPE} holds no keys and values")
        return text, {}, None
    try:
        return text, values, Recipe.model_validate(values)
    except (ValidationError, RecursionError) as error:
        reason = str(error).partition("\n")[0][:300]
        notes.append(f"{RECIPE} is not of this version of ibtrain ({reason}); no samples are shown")
        return text, values, None


def _read_checkpoints(path: Path, notes: list[str]) -> tuple[list[Checkpoint], dict[str, Any]]:
    """The newest checkpoints in ascending order, and the state of the newest that can be read."""
    folder = checkpoints(path)
    put_aside = sorted(folder.glob("superseded-step-*")) if folder.is_dir() else []
    directories = [one for one in [*put_aside, *whole_steps(path)] if one.is_dir()]
    if not directories:
        notes.append("there is no checkpoint yet")
    if len(directories) > MOST_CHECKPOINTS:
        notes.append(f"only the last {MOST_CHECKPOINTS} of {len(directories):,} checkpoints appear")
    found: list[Checkpoint] = []
    newest: dict[str, Any] = {}
    for directory in directories[-MOST_CHECKPOINTS:]:
        try:
            state = read_json(directory / STATE, "it is shown without what it tells")
        except (FileError, OSError) as error:
            notes.append(str(error))
            state = {}
        newest = state or newest
        files = [file for file in directory.iterdir() if file.is_file()]
        found.append(
            Checkpoint(
                name=directory.name,
                step=whole_number(state.get("step")),
                bytes=sum(file.stat().st_size for file in files),
                seconds=directory.stat().st_mtime,
                world_size=whole_number(state.get("world_size")),
                version=str(state.get("ibtrain", ""))[:40],
            )
        )
    return found, newest


def _shares(state: dict[str, Any]) -> dict[str, float]:
    """The share of each dataset of the mixture that a checkpoint's state tells."""
    order = state.get("order")
    datasets = order.get("datasets") if isinstance(order, dict) else None
    if not isinstance(datasets, dict):
        return {}
    shares = {
        name: finite(dataset.get("share"))
        for name, dataset in datasets.items()
        if isinstance(dataset, dict)
    }
    return {name: share for name, share in shares.items() if share is not None and 0 <= share <= 1}


def _read_incidents(path: Path, unread: Unread) -> Incidents:
    incidents = Incidents()
    for line in objects(path / QUARANTINE, unread):
        incidents.total += 1
        key = str(line.get("dataset", ""))[:200], str(line.get("kind", ""))[:40]
        if key in incidents.counts or len(incidents.counts) < _MOST_KINDS:
            incidents.counts[key] += 1
            incidents.samples[key] += whole_number(line.get("samples")) or 0
        if len(incidents.first) < MOST_INCIDENTS:
            incidents.first.append(line)
    return incidents


def _read_plan(path: Path, notes: list[str]) -> dict[str, Any] | None:
    if not (path / PLAN).is_file():
        return None
    try:
        return read_json(path / PLAN, "write it with `ibtrain plan --json`")
    except (FileError, OSError) as error:
        notes.append(str(error))
        return None


def flat(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value as JSON) pairs of a recipe's values."""
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, json.dumps(values, default=str)
