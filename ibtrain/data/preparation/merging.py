"""The end of a conversion: the budget of bad annotations, and all chunks into one directory."""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from ibtrain.data.preparation.conversion import (
    ChunkReport,
    chunk_directory,
    finished,
    quarantine_of,
)
from ibtrain.data.preparation.survey import Survey
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
    """What is known of all chunks so far; `reports` holds those that are finished, by number."""

    chunks: Path
    survey: Survey
    reports: dict[int, ChunkReport]

    @classmethod
    def of(cls, chunks: Path, survey: Survey, looked_at: range) -> "Known":
        """Looks at the chunks numbered `looked_at`."""
        found = {chunk: finished(chunks, chunk) for chunk in looked_at}
        return cls(chunks, survey, {chunk: report for chunk, report in found.items() if report})

    @property
    def bad(self) -> int:
        """Bad annotations so far."""
        return self.survey.rejected + sum(report.quarantined for report in self.reports.values())

    def quarantine(self) -> list[dict[str, Any]]:
        """All bad annotations in their order."""
        rows = self.survey.rejections()
        for chunk, report in self.reports.items():
            if report.quarantined:
                rows += quarantine_of(self.chunks, chunk)
        return sorted(rows, key=lambda row: int(row["number"]))


def check_budget(known: Known, budget: float, request: dict[str, Any], out: Path) -> None:
    """Fails where the budget cannot be met any more, or nothing is left to convert.

    Raises:
        OverBudgetError: the reasons then lie in `out`.
        ValueError: no annotation gives an example.
    """
    survey = known.survey
    name = f"{request['dataset']} ({request['split']})"
    if known.bad > budget * survey.read:
        raise OverBudgetError(
            f"{name}: {known.bad} of {survey.read} annotations are bad, more than the budget of "
            f"{budget:.1%}; {_set_aside(known, out)}. Mend them or raise the budget, then run "
            "this again: what is converted is kept"
        )
    if not survey.examples:
        raise _nothing_left(known, request, out)


def _set_aside(known: Known, out: Path) -> str:
    """Writes down all that is bad, to be looked at once more; tells the first and the file."""
    rows = known.quarantine()
    _write_quarantine(known.chunks, out, rows)
    (known.chunks / FAILED).touch()
    return f"the first is {_told(rows[0])}. All reasons: {out / QUARANTINE}"


def _told(row: dict[str, Any]) -> str:
    return f"{row['id']}: {row['reason']}"


def _nothing_left(known: Known, request: dict[str, Any], out: Path) -> ValueError:
    """What to say where no annotation gives a record."""
    survey = known.survey
    name = f"{request['dataset']} ({request['split']})"
    if not survey.read:
        (known.chunks / FAILED).touch()
        return ValueError(f"{name}: {', '.join(request['sources'])} holds no annotation")
    dropped = ", ".join(f"{count} {reason}" for reason, count in survey.dropped.items())
    text = f"{name}: not one record is left of {survey.read}; dropped {dropped or 'none'}"
    if known.bad:
        return ValueError(f"{text}; {known.bad} bad, {_set_aside(known, out)}")
    (known.chunks / FAILED).touch()
    return ValueError(text)


def finish(
    chunks: Path, out: Path, survey: Survey, own: range, budget: float, request: dict[str, Any]
) -> PrepareReport:
    """Merges all chunks if they are finished; else tells of those in `own`."""
    known = Known.of(chunks, survey, range(survey.chunks))
    check_budget(known, budget, request, out)
    whole = len(known.reports) == survey.chunks
    reports = [report for chunk, report in sorted(known.reports.items()) if whole or chunk in own]
    written = sum(chunk.written for chunk in reports)
    if whole and not written:
        raise _nothing_left(known, request, out)
    report = PrepareReport(
        request["dataset"],
        request["split"],
        written=written,
        dropped=survey.dropped if whole else {},
        quarantined=known.bad if whole else sum(chunk.quarantined for chunk in reports),
        shards=sum(len(chunk.shards) for chunk in reports),
        complete=whole,
        renamed=survey.renamed if whole else 0,
        first_bad=_told(known.quarantine()[0]) if whole and known.bad else "",
    )
    if whole:
        _merge(known, out, request, report)
    return report


def _merge(known: Known, out: Path, request: dict[str, Any], report: PrepareReport) -> None:
    """Moves the shards of all chunks into `out`, numbered through, then card and index.

    Killed at any point, it does the rest the next time.
    """
    entries: list[dict[str, Any]] = []
    for chunk, made in sorted(known.reports.items()):
        for entry in made.shards:
            stored = _stored(entry)
            source = chunk_directory(known.chunks, chunk) / stored["basename"]
            entries.append(_renamed(entry, len(entries)))
            target = out / _stored(entries[-1])["basename"]
            if source.is_file():
                source.replace(target)
            elif not target.is_file() or target.stat().st_size != stored["bytes"]:
                raise RuntimeError(
                    f"{source} is gone; remove {known.chunks} and run `ibtrain data prepare` again"
                )
    named = {_stored(entry)["basename"] for entry in entries}
    for path in out.iterdir():
        if is_shard(path.name) and path.name not in named:
            path.unlink()
    _write_quarantine(known.chunks, out, known.quarantine())
    merged = known.chunks / "merged"
    merged.mkdir(exist_ok=True)
    index = json.dumps({"version": 2, "shards": entries}, sort_keys=True)
    write_beside(merged / INDEX, index, known.chunks)
    card = _card(known, merged, request, report)
    write_beside(out / CARD, json.dumps(card, indent=2) + "\n", known.chunks)
    sync_tree(merged)
    sync(out)
    (merged / INDEX).replace(out / INDEX)
    sync(out)
    shutil.rmtree(known.chunks, ignore_errors=True)


def _stored(entry: dict[str, Any]) -> dict[str, Any]:
    """What a shard's entry says of its file."""
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


def _write_quarantine(chunks: Path, out: Path, rows: list[dict[str, Any]]) -> None:
    lines = [json.dumps({"id": row["id"], "reason": row["reason"]}) + "\n" for row in rows]
    write_beside(out / QUARANTINE, "".join(lines), chunks)


def write_beside(path: Path, text: str, chunks: Path) -> None:
    """Writes a file among the chunks first, so that nothing unfinished lies with the shards."""
    write_whole(path, text, temporary=chunks / f".{path.name}.{os.getpid()}")
