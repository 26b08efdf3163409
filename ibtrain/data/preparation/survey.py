"""The first pass of a conversion: annotations read once, and cut into chunks.

Examples are spread over chunks by the hash of their image's path, so that all examples of an image
are in one chunk and the image is decoded once, whatever process or machine converts the chunk. What
lies in a chunk depends on the annotations alone.
"""

import json
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
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

CHUNK_EXAMPLES = 4096
PLAN = "plan"
_BUCKETS = 256
_BATCH = 4096
_CONTENT = "plan.json"
_REJECTED = "rejected.jsonl"
_REPEATED = "repeated.jsonl"
DUPLICATE = "duplicate"


@dataclass(frozen=True)
class Survey:
    """What the annotations of a split hold.

    `read` counts them all, `examples` those that go into `chunks` chunks, `dropped` those that are
    left out by reason, `rejected` the bad ones, `renamed` the examples whose id came before.
    """

    directory: Path
    base: str
    read: int
    examples: int
    dropped: dict[str, int]
    rejected: int
    chunks: int
    renamed: int = 0

    def lines_of(self, chunk: int) -> list[str]:
        """The lines of a chunk: those of an image together, else as the annotations are."""
        found: list[tuple[int, str, str]] = []
        for bucket in self._buckets_of(chunk):
            path = self.directory / f"{bucket:02x}.jsonl"
            if not path.is_file():
                continue
            with path.open(encoding="ascii") as lines:
                for line in lines:
                    number, key, _ = line.split("\t", 2)
                    if (int(key, 16) >> 24) % self._split == chunk % self._split:
                        found.append((int(number), key, line))
        if not (self.directory / _CONTENT).is_file():
            raise RuntimeError(f"{self.directory} was removed meanwhile; run the same again")
        found.sort()
        first: dict[str, int] = {}
        for row in found:
            first.setdefault(row[1], row[0])
        return [line for _, _, line in sorted(found, key=lambda row: (first[row[1]], row[0]))]

    def digest(self, chunk: int) -> str:
        """A hash of all that a chunk holds."""
        return xxhash.xxh3_128_hexdigest("".join(self.lines_of(chunk)).encode("ascii"))

    @property
    def _split(self) -> int:
        """Into how many chunks a bucket goes; 1 where a chunk has several buckets."""
        return -(-self.chunks // _BUCKETS)

    def _buckets_of(self, chunk: int) -> list[int]:
        if self._split > 1:
            return [chunk // self._split]
        return [bucket for bucket in range(_BUCKETS) if bucket * self.chunks // _BUCKETS == chunk]

    def rejections(self) -> list[dict[str, Any]]:
        """{"number", "id", "reason"} of each bad annotation."""
        with (self.directory / _REJECTED).open(encoding="ascii") as lines:
            return [json.loads(line) for line in lines]

    def example(self, line: str) -> tuple[int, Example]:
        """The position in the annotations, and the example, that a line holds."""
        number, _, text = line.split("\t", 2)
        fields = json.loads(text)
        for name in ("image", "video"):
            fields[name] = None if fields[name] is None else Path(self.base, fields[name])
        fields["answers"] = tuple(Answer(**answer) for answer in fields["answers"])
        fields["instructions"] = tuple(fields["instructions"])
        fields["images"] = tuple(Path(self.base, name) for name in fields.get("images", ()))
        return int(number), Example(**fields)


def load_survey(chunks: Path, raw: Path) -> Survey | None:
    """The survey that was made before, if it was finished."""
    path = chunks / PLAN / _CONTENT
    if not path.is_file():
        return None
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields["chunks"] = fields.pop("parts")  # so called by earlier releases
    return Survey(chunks / PLAN, _base(raw), **fields)


def make_survey(chunks: Path, raw: Path, found: Iterable[Example | Rejected]) -> Survey:
    """Reads the annotations and writes the survey into `chunks`, atomically.

    An annotation whose id comes again is left out where all that it gives came before, word for
    word; else it is kept and renamed (`_rename`), once all ids are known.

    Memory: 16 bytes per example (ids and contents are remembered as 64-bit hashes: that two ids
    which differ are taken for one costs the second its name, and only if their contents are also
    taken for one a record), 8 for one that is renamed, and one batch.
    """
    temporary = chunks / f".{PLAN}.writing"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    with _Writer(temporary, raw) as writer:
        groups = _annotations(found)
        while batch := list(islice(groups, _BATCH)):
            writer.add(batch)
        writer.rename()
    count = max(1, -(-writer.examples // CHUNK_EXAMPLES))
    if count > _BUCKETS:
        count = -(-count // _BUCKETS) * _BUCKETS
    content = {
        "read": writer.read,
        "examples": writer.examples,
        "dropped": dict(sorted(writer.dropped.items())),
        "rejected": writer.rejected,
        "parts": count,
        "renamed": writer.renamed,
    }
    (temporary / _CONTENT).write_text(json.dumps(content), encoding="utf-8")
    (temporary / _REPEATED).unlink(missing_ok=True)
    shutil.rmtree(chunks / PLAN, ignore_errors=True)
    temporary.rename(chunks / PLAN)
    survey = load_survey(chunks, raw)
    assert survey is not None
    return survey


_Annotation = list[Example] | Rejected


def _annotations(found: Iterable[Example | Rejected]) -> Iterator[_Annotation]:
    """The examples of each annotation together."""
    group: list[Example] = []
    for item in found:
        if group and (
            isinstance(item, Rejected)
            or not item.annotation
            or item.annotation != group[0].annotation
        ):
            yield group
            group = []
        if isinstance(item, Rejected):
            yield item
        else:
            group.append(item)
    if group:
        yield group


class _Writer:
    """Writes what a survey holds, batch after batch, and counts it."""

    def __init__(self, directory: Path, raw: Path) -> None:
        self._directory = directory
        self._raw = raw
        self._base = _base(raw)
        self._ids, self._contents = _Seen(), _Seen()
        self._repeated_keys = array("Q")  # the id that came again, of each annotation to rename
        self._stack = ExitStack()
        self._buckets: dict[int, TextIO] = {}
        self.dropped: Counter[str] = Counter()
        self.read = self.examples = self.rejected = self.renamed = 0

    def __enter__(self) -> "_Writer":
        self._bad = self._stack.enter_context(self._open(_REJECTED))
        self._repeated = self._stack.enter_context(self._open(_REPEATED))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self, name: str) -> TextIO:
        return (self._directory / name).open("w", encoding="ascii")

    def add(self, batch: list[_Annotation]) -> None:
        """Writes a batch of annotations; those whose id comes again are kept for `rename`."""
        groups = [item for item in batch if not isinstance(item, Rejected)]
        fields = [[_fields(example, self._base) for example in group] for group in groups]
        texts = [[json.dumps(row) for row in rows] for rows in fields]
        ids = [_hash(example.id) for group in groups for example in group]
        new_ids = iter(self._ids.add(np.array(ids, np.uint64)))
        contents = [_hash("\n".join(rows)) for rows in texts]
        new_contents = self._contents.add(np.array(contents, np.uint64))
        given = zip(fields, texts, new_contents, strict=True)
        for item in batch:
            if isinstance(item, Rejected):
                self._reject(item)
                continue
            rows, lines, differs = next(given)
            if all(list(islice(new_ids, len(rows)))):
                for number, (row, text) in enumerate(zip(rows, lines, strict=True), self.read):
                    self._write(number, row, text)
            elif differs:
                self._repeated_keys.append(_hash(rows[0]["id"]))
                self._repeated.write(json.dumps([self.read, rows]) + "\n")
            else:
                self.dropped[DUPLICATE] += len(rows)
            self.read += len(rows)

    def _reject(self, item: Rejected) -> None:
        if item.bad:
            row = {"number": self.read, "id": item.id, "reason": private(item.reason, self._raw)}
            self._bad.write(json.dumps(row) + "\n")
            self.rejected += 1
        else:
            self.dropped[item.reason] += 1
        self.read += 1

    def _write(self, number: int, fields: dict[str, Any], text: str) -> None:
        images = fields.get("images")
        key = _hash(fields["image"] or fields["video"] or (images[0] if images else fields["id"]))
        bucket = key * _BUCKETS >> 64
        if bucket not in self._buckets:
            self._buckets[bucket] = self._stack.enter_context(self._open(f"{bucket:02x}.jsonl"))
        self._buckets[bucket].write(f"{number}\t{key:016x}\t{text}\n")
        self.examples += 1

    def rename(self) -> None:
        """Writes the annotations whose ids came before with other content: `ID#2` the second with
        an id, `ID#3` the third. Where there is such an id in the annotations, it keeps its name,
        and the other gets one more suffix.
        """
        self._repeated.close()
        counts = iter(_occurrences(np.array(self._repeated_keys, np.uint64)))
        with (self._directory / _REPEATED).open(encoding="ascii") as lines:
            while batch := [json.loads(line) for line in islice(lines, _BATCH)]:
                named = []
                for first, rows in batch:
                    suffix = f"#{next(counts) + 2}"
                    for number, row in enumerate(rows, start=first):
                        named.append((number, row, row["id"] + suffix, suffix))
                known = self._ids.holds([_hash(name) for _, _, name, _ in named])
                given: set[int] = set()
                for (number, row, name, suffix), is_known in zip(named, known, strict=True):
                    if is_known or _hash(name) in given:
                        name = self._free(name, suffix, given)  # noqa: PLW2901
                    given.add(_hash(name))
                    renamed = row | {"id": name}
                    self._write(number, renamed, json.dumps(renamed))
                self._ids.add(np.array(list(given), np.uint64))
                self.renamed += len(named)

    def _free(self, name: str, suffix: str, given: set[int]) -> str:
        """`name` with as many more suffixes as it takes until nothing else is called so."""
        while True:
            name += suffix
            if _hash(name) not in given and not self._ids.holds([_hash(name)])[0]:
                return name


def _occurrences(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Of each key, how often it stands before: [5, 7, 5, 5] gives [0, 0, 1, 2]."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    positions = np.arange(len(keys))
    begins = np.ones(len(keys), bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    counts = np.empty(len(keys), np.int64)
    counts[order] = positions - np.maximum.accumulate(np.where(begins, positions, 0))
    return counts


def private(reason: str, raw: Path) -> str:
    """A reason without the machine's own paths: the raw directory is written RAW."""
    directory = os.path.normpath(raw.absolute())
    parent = str(Path(directory).parent)
    if raw.is_absolute():
        reason = reason.replace(str(raw), "RAW")
    reason = reason.replace(directory, "RAW")
    return reason if parent == "/" else reason.replace(parent, "RAW/..")


def _base(raw: Path) -> str:
    """The folder that paths in a survey are relative to: images may lie beside `raw`."""
    return str(Path(os.path.normpath(raw.absolute())).parent)


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def _fields(example: Example, base: str) -> dict[str, Any]:
    """An example as plain values, paths relative to `base`."""
    fields = {name: getattr(example, name) for name in Example.__dataclass_fields__}
    del fields["annotation"]
    fields["answers"] = [asdict(answer) for answer in example.answers]
    for name in ("image", "video"):
        if fields[name] is not None:
            fields[name] = str(fields[name]).removeprefix(base + "/")
    images = [str(path).removeprefix(base + "/") for path in fields.pop("images")]
    return fields | ({"images": images} if images else {})


class _Seen:
    """The hashes seen so far, as a few sorted arrays of geometrically growing size."""

    def __init__(self) -> None:
        self._runs: list[npt.NDArray[np.uint64]] = []

    def add(self, keys: npt.NDArray[np.uint64]) -> list[bool]:
        """Which of `keys` are seen for the first time."""
        new = np.zeros(len(keys), bool)
        new[np.unique(keys, return_index=True)[1]] = True
        new &= ~self._held(keys)
        if new.any():
            self._runs.append(np.sort(keys[new]))
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            last = self._runs.pop()
            self._runs[-1] = np.sort(np.concatenate([self._runs[-1], last]), kind="stable")
        return [bool(value) for value in new]

    def holds(self, keys: list[int]) -> list[bool]:
        """Which of `keys` were seen before."""
        return [bool(value) for value in self._held(np.array(keys, np.uint64))]

    def _held(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        found = np.zeros(len(keys), bool)
        for run in self._runs:
            found |= run[np.searchsorted(run, keys).clip(max=len(run) - 1)] == keys
        return found
