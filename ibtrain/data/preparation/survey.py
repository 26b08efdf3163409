"""The first pass of a conversion: annotations read once, and cut into parts.

Examples are spread over parts by the hash of their image's path, so that all examples of an image
are in one part and the image is decoded once, whatever process or machine converts the part. What
lies in a part depends on the annotations alone.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
import xxhash

from ibtrain.data.readers import Rejected
from ibtrain.data.records import Answer, Example

PART_EXAMPLES = 4096
PLAN = "plan"
_BUCKETS = 256
_BATCH = 4096
_CONTENT = "plan.json"
_REJECTED = "rejected.jsonl"


@dataclass(frozen=True)
class Plan:
    """What the annotations of a split hold.

    `read` counts them all, `examples` those that go into `parts` parts, `dropped` those of no use
    by reason, `rejected` the bad ones.
    """

    directory: Path
    base: str
    read: int
    examples: int
    dropped: dict[str, int]
    rejected: int
    parts: int

    def lines_of(self, part: int) -> list[str]:
        """The lines of a part: those of an image together, else in the order of the annotations."""
        found: list[tuple[int, str, str]] = []
        for bucket in self._buckets_of(part):
            path = self.directory / f"{bucket:02x}.jsonl"
            if not path.is_file():
                continue
            with path.open(encoding="ascii") as lines:
                for line in lines:
                    number, key, _ = line.split("\t", 2)
                    if (int(key, 16) >> 24) % self._split == part % self._split:
                        found.append((int(number), key, line))
        if not (self.directory / _CONTENT).is_file():
            raise RuntimeError(f"{self.directory} was removed meanwhile; run the same again")
        found.sort()
        first: dict[str, int] = {}
        for row in found:
            first.setdefault(row[1], row[0])
        return [line for _, _, line in sorted(found, key=lambda row: (first[row[1]], row[0]))]

    def digest(self, part: int) -> str:
        """A hash of all that a part holds."""
        return xxhash.xxh3_128_hexdigest("".join(self.lines_of(part)).encode("ascii"))

    @property
    def _split(self) -> int:
        """Into how many parts a bucket goes; 1 where a part has several buckets."""
        return -(-self.parts // _BUCKETS)

    def _buckets_of(self, part: int) -> list[int]:
        if self._split > 1:
            return [part // self._split]
        return [bucket for bucket in range(_BUCKETS) if bucket * self.parts // _BUCKETS == part]

    def rejections(self) -> list[dict[str, Any]]:
        """{"number", "id", "reason"} of each bad annotation."""
        with (self.directory / _REJECTED).open(encoding="ascii") as lines:
            return [json.loads(line) for line in lines]

    def example(self, line: str) -> tuple[int, Example]:
        """The place in the annotations, and the example, that a line holds."""
        number, _, text = line.split("\t", 2)
        fields = json.loads(text)
        for name in ("image", "video"):
            fields[name] = None if fields[name] is None else Path(self.base, fields[name])
        fields["answers"] = tuple(Answer(**answer) for answer in fields["answers"])
        fields["instructions"] = tuple(fields["instructions"])
        return int(number), Example(**fields)


def load_plan(parts: Path, raw: Path) -> Plan | None:
    """The plan that was made before, if it was made wholly."""
    path = parts / PLAN / _CONTENT
    if not path.is_file():
        return None
    return Plan(parts / PLAN, _base(raw), **json.loads(path.read_text(encoding="utf-8")))


def make_plan(parts: Path, raw: Path, found: Iterable[Example | Rejected]) -> Plan:
    """Reads the annotations and writes the plan into `parts`, whole or not at all.

    Memory: 8 bytes per example (ids are remembered as 64-bit hashes: among the 14 M of the largest
    dataset two that differ are taken for one with a probability of 5e-6), and one batch.
    """
    temporary = parts / f".{PLAN}.writing"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    base = _base(raw)
    seen = _Seen()
    dropped: Counter[str] = Counter()
    read = examples = rejected = 0
    with ExitStack() as stack:
        bad = stack.enter_context((temporary / _REJECTED).open("w", encoding="ascii"))
        buckets: dict[int, TextIO] = {}
        stream = iter(found)
        while batch := list(islice(stream, _BATCH)):
            keys = [_hash(item.id) for item in batch if isinstance(item, Example)]
            new = iter(seen.add(np.array(keys, np.uint64)))
            for number, item in enumerate(batch, start=read):
                if isinstance(item, Rejected) and item.bad:
                    row = {"number": number, "id": item.id, "reason": private(item.reason, raw)}
                    bad.write(json.dumps(row) + "\n")
                    rejected += 1
                elif isinstance(item, Rejected):
                    dropped[item.reason] += 1
                elif not next(new):
                    dropped["repeated id"] += 1
                else:
                    key, text = _line(item, base)
                    bucket = key * _BUCKETS >> 64
                    if bucket not in buckets:
                        path = temporary / f"{bucket:02x}.jsonl"
                        buckets[bucket] = stack.enter_context(path.open("w", encoding="ascii"))
                    buckets[bucket].write(f"{number}\t{key:016x}\t{text}\n")
                    examples += 1
            read += len(batch)
    count = max(1, -(-examples // PART_EXAMPLES))
    if count > _BUCKETS:
        count = -(-count // _BUCKETS) * _BUCKETS
    content = {
        "read": read,
        "examples": examples,
        "dropped": dict(sorted(dropped.items())),
        "rejected": rejected,
        "parts": count,
    }
    (temporary / _CONTENT).write_text(json.dumps(content), encoding="utf-8")
    shutil.rmtree(parts / PLAN, ignore_errors=True)
    temporary.rename(parts / PLAN)
    plan = load_plan(parts, raw)
    assert plan is not None
    return plan


def private(reason: str, raw: Path) -> str:
    """A reason without the machine's own paths: the raw directory is written RAW."""
    directory = os.path.normpath(raw.absolute())
    parent = str(Path(directory).parent)
    if raw.is_absolute():
        reason = reason.replace(str(raw), "RAW")
    reason = reason.replace(directory, "RAW")
    return reason if parent == "/" else reason.replace(parent, "RAW/..")


def _base(raw: Path) -> str:
    """The folder that paths in a plan are relative to: images may lie beside `raw`."""
    return str(Path(os.path.normpath(raw.absolute())).parent)


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def _line(example: Example, base: str) -> tuple[int, str]:
    """The hash of the image's path (of the id where there is none), and the example as JSON."""
    fields = {name: getattr(example, name) for name in Example.__dataclass_fields__}
    fields["answers"] = [asdict(answer) for answer in example.answers]
    for name in ("image", "video"):
        if fields[name] is not None:
            fields[name] = str(fields[name]).removeprefix(base + "/")
    key = fields["image"] or fields["video"] or example.id
    return _hash(key), json.dumps(fields)


class _Seen:
    """The hashes seen so far, as a few sorted arrays of geometrically growing size."""

    def __init__(self) -> None:
        self._runs: list[npt.NDArray[np.uint64]] = []

    def add(self, keys: npt.NDArray[np.uint64]) -> list[bool]:
        """Which of `keys` are seen for the first time."""
        new = np.zeros(len(keys), bool)
        new[np.unique(keys, return_index=True)[1]] = True
        for run in self._runs:
            new &= run[np.searchsorted(run, keys).clip(max=len(run) - 1)] != keys
        if new.any():
            self._runs.append(np.sort(keys[new]))
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            last = self._runs.pop()
            self._runs[-1] = np.sort(np.concatenate([self._runs[-1], last]), kind="stable")
        return [bool(value) for value in new]
