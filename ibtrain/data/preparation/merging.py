"""The end of a conversion: the budget of bad annotations, and all parts into one directory."""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from ibtrain.data.preparation.conversion import (
    PartReport,
    finished,
    part_directory,
    quarantine_of,
)
from ibtrain.data.preparation.survey import Plan
from ibtrain.data.shards.card import CARD, QUARANTINE
from ibtrain.data.shards.index import INDEX, read_index
from ibtrain.data.shards.records import fingerprint
from ibtrain.files import sync, sync_tree, write_whole

FAILED = "failed"  # a file that says: what was bad is to be looked at once more


class OverBudgetError(ValueError):
    """More annotations are bad than may be."""


@dataclass(frozen=True)
class PrepareReport:
    """What became of a split: records written, what was left out by reason, bad annotations set
    aside and the reason of the first, and records renamed because their id came before.

    `complete` is false where only a portion was converted and others are still to come; then only
    this portion is counted.
    """

    dataset: str
    split: str
    written: int
    dropped: dict[str, int]
    quarantined: int
    shards: int
    complete: bool = True
    renamed: int = 0
    first_bad: str = ""


@dataclass(frozen=True)
class Known:
    """What is known of all parts so far; `reports` holds those that are finished, by number."""

    parts: Path
    plan: Plan
    reports: dict[int, PartReport]

    @classmethod
    def of(cls, parts: Path, plan: Plan, looked_at: range) -> "Known":
        """Looks at the parts numbered `looked_at`."""
        found = {part: finished(parts, part) for part in looked_at}
        return cls(parts, plan, {part: report for part, report in found.items() if report})

    @property
    def bad(self) -> int:
        """Bad annotations so far."""
        return self.plan.rejected + sum(report.quarantined for report in self.reports.values())

    def quarantine(self) -> list[dict[str, Any]]:
        """All bad annotations in their order."""
        rows = self.plan.rejections()
        for part, report in self.reports.items():
            if report.quarantined:
                rows += quarantine_of(self.parts, part)
        return sorted(rows, key=lambda row: int(row["number"]))


def check_budget(known: Known, budget: float, request: dict[str, Any], out: Path) -> None:
    """Fails where the budget cannot be met any more, or nothing is left to convert.

    Raises:
        OverBudgetError: the reasons then lie in `out`.
        ValueError: no annotation gives an example.
    """
    plan = known.plan
    name = f"{request['dataset']} ({request['split']})"
    if known.bad > budget * plan.read:
        raise OverBudgetError(
            f"{name}: {known.bad} of {plan.read} annotations are bad, more than the budget of "
            f"{budget:.1%}; {_set_aside(known, out)}. Mend them or raise the budget, then run "
            "this again: what is converted is kept"
        )
    if not plan.examples:
        raise _nothing_left(known, request, out)


def _set_aside(known: Known, out: Path) -> str:
    """Writes down all that is bad, to be looked at once more; tells the first and the file."""
    rows = known.quarantine()
    _write_quarantine(known.parts, out, rows)
    (known.parts / FAILED).touch()
    return f"the first is {_told(rows[0])}. All reasons: {out / QUARANTINE}"


def _told(row: dict[str, Any]) -> str:
    return f"{row['id']}: {row['reason']}"


def _nothing_left(known: Known, request: dict[str, Any], out: Path) -> ValueError:
    """What to say where no annotation gives a record."""
    plan = known.plan
    name = f"{request['dataset']} ({request['split']})"
    if not plan.read:
        (known.parts / FAILED).touch()
        return ValueError(f"{name}: {', '.join(request['sources'])} holds no annotation")
    dropped = ", ".join(f"{count} {reason}" for reason, count in plan.dropped.items())
    text = f"{name}: not one record is left of {plan.read}; dropped {dropped or 'none'}"
    if known.bad:
        return ValueError(f"{text}; {known.bad} bad, {_set_aside(known, out)}")
    (known.parts / FAILED).touch()
    return ValueError(text)


def finish(
    parts: Path, out: Path, plan: Plan, own: range, budget: float, request: dict[str, Any]
) -> PrepareReport:
    """Merges all parts if they are finished; else tells of those in `own`."""
    known = Known.of(parts, plan, range(plan.parts))
    check_budget(known, budget, request, out)
    whole = len(known.reports) == plan.parts
    reports = [report for part, report in sorted(known.reports.items()) if whole or part in own]
    written = sum(part.written for part in reports)
    if whole and not written:
        raise _nothing_left(known, request, out)
    report = PrepareReport(
        request["dataset"],
        request["split"],
        written=written,
        dropped=plan.dropped if whole else {},
        quarantined=known.bad if whole else sum(part.quarantined for part in reports),
        shards=sum(len(part.shards) for part in reports),
        complete=whole,
        renamed=plan.renamed if whole else 0,
        first_bad=_told(known.quarantine()[0]) if whole and known.bad else "",
    )
    if whole:
        _merge(known, out, request, report)
    return report


def _merge(known: Known, out: Path, request: dict[str, Any], report: PrepareReport) -> None:
    """Moves the shards of all parts into `out`, numbered through, then card and index.

    Killed at any point, it does the rest the next time.
    """
    entries: list[dict[str, Any]] = []
    for part, made in sorted(known.reports.items()):
        for entry in made.shards:
            stored = _stored(entry)
            source = part_directory(known.parts, part) / stored["basename"]
            entries.append(_renamed(entry, len(entries)))
            target = out / _stored(entries[-1])["basename"]
            if source.is_file():
                source.replace(target)
            elif not target.is_file() or target.stat().st_size != stored["bytes"]:
                raise RuntimeError(
                    f"{source} is gone; remove {known.parts} and run `ibtrain data prepare` again"
                )
    named = {_stored(entry)["basename"] for entry in entries}
    for path in out.iterdir():
        if is_shard(path.name) and path.name not in named:
            path.unlink()
    _write_quarantine(known.parts, out, known.quarantine())
    merged = known.parts / "merged"
    merged.mkdir(exist_ok=True)
    index = json.dumps({"version": 2, "shards": entries}, sort_keys=True)
    write_beside(merged / INDEX, index, known.parts)
    card = _card(known, merged, request, report)
    write_beside(out / CARD, json.dumps(card, indent=2) + "\n", known.parts)
    sync_tree(merged)
    sync(out)
    (merged / INDEX).replace(out / INDEX)
    sync(out)
    shutil.rmtree(known.parts, ignore_errors=True)


def _stored(entry: dict[str, Any]) -> dict[str, Any]:
    """The part of a shard's entry that speaks of its file."""
    stored: dict[str, Any] = entry["zip_data"] or entry["raw_data"]
    return stored


def is_shard(name: str) -> bool:
    """Whether a file name is that of a shard that was written here."""
    return name.startswith("shard.") and name.endswith((".mds", ".mds.zstd"))


def _renamed(entry: dict[str, Any], number: int) -> dict[str, Any]:
    """The entry of a shard under its number among all."""
    name = f"shard.{number:05}.mds"
    renamed = entry | {"raw_data": entry["raw_data"] | {"basename": name}}
    if entry["zip_data"]:
        renamed["zip_data"] = entry["zip_data"] | {"basename": f"{name}.zstd"}
    return renamed


def _card(
    known: Known, merged: Path, request: dict[str, Any], report: PrepareReport
) -> dict[str, Any]:
    index = read_index(merged)
    reports = [made for _, made in sorted(known.reports.items())]
    spreads = {
        name: reduce(add, (made.spreads[name] for made in reports)).summary()
        for name in reports[0].spreads
    }
    return {
        "request": request,
        "report": asdict(report),
        "lengths": {
            "instructions": {"unit": "characters", **spreads["instruction_characters"]},
            "answers": {"unit": "characters", **spreads["answer_characters"]},
        },
        "images": {name: spreads[name] for name in ("width", "height")}
        | {"bytes": spreads["image_bytes"]},
        "bytes": {
            "stored": sum(shard.bytes for shard in index.shards),
            "raw": sum(shard.raw_bytes for shard in index.shards),
        },
        "parts": [
            {"records": made.written, "quarantined": made.quarantined, "shards": len(made.shards)}
            for made in reports
        ],
        "fingerprint": fingerprint(index),
    }


def _write_quarantine(parts: Path, out: Path, rows: list[dict[str, Any]]) -> None:
    lines = [json.dumps({"id": row["id"], "reason": row["reason"]}) + "\n" for row in rows]
    write_beside(out / QUARANTINE, "".join(lines), parts)


def write_beside(path: Path, text: str, parts: Path) -> None:
    """Writes a file among the parts first, so that nothing unfinished lies with the shards."""
    write_whole(path, text, temporary=parts / f".{path.name}.{os.getpid()}")
