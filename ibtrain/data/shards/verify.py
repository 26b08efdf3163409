"""`ibtrain data verify`: is a shard directory what its index and its card say, to the last image.

Every file is hashed, every record and every image decoded, ids are held against each other and
counts against the card. All that is wrong is listed, not only the first.
"""

import io
import struct
from collections.abc import Iterable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from PIL import Image
from tqdm import tqdm

from ibtrain.data.images import MAXIMUM_PIXELS
from ibtrain.data.shards.card import CARD, QUARANTINE, card_differences, read_card
from ibtrain.data.shards.format import decode_sample, split_samples
from ibtrain.data.shards.index import (
    INDEX,
    ShardFile,
    ShardIndex,
    holds_shards,
    index_entries,
)
from ibtrain.data.shards.records import columns_to_record, stored_bytes, unpacked, wrong_hashes

_LISTED = 1000  # bad records of one shard; more are only counted
_REASON = 400  # characters
_NAMES = 3  # datasets named in one shard
_IMAGE_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    KeyError,
    IndexError,
    OverflowError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
)
_IDENTITY = np.dtype([("high", "<u8"), ("low", "<u8")])


@dataclass(frozen=True)
class Problem:
    """Something bad: the file, the record's number in it (None: the whole file), and why."""

    shard: str
    index: int | None
    reason: str

    def __str__(self) -> str:
        record = "" if self.index is None else f", record {self.index}"
        return f"{self.shard}{record}: {self.reason}"


@dataclass(frozen=True)
class ShardReport:
    """What was found in one shard.

    `intact` tells whether the file is as the index says, `records` counts the good records, whose
    numbers in the shard and hashed ids are in `numbers` and `identities`. `datasets` are the names
    that they bear.
    """

    shard: ShardFile
    intact: bool
    bad: tuple[Problem, ...]
    numbers: npt.NDArray[np.int64] = field(repr=False)
    identities: npt.NDArray[np.void] = field(repr=False)
    datasets: frozenset[str] = frozenset()

    @property
    def records(self) -> int:
        """How many of its records are good."""
        return len(self.numbers)


@dataclass(frozen=True)
class VerifyReport:
    """What was found in a directory.

    `records` counts the good ones; `leftovers` are files that belong to nothing, which do no harm.
    """

    records: int
    bad: tuple[Problem, ...]
    leftovers: tuple[str, ...]
    index: ShardIndex | None = field(repr=False)
    card: dict[str, Any] | None = field(repr=False)
    shards: tuple[ShardReport, ...] = field(repr=False)


def verify(
    directory: Path,
    *,
    workers: int = 1,
    progress: bool = True,
    known: Iterable[ShardReport] = (),
) -> VerifyReport:
    """Checks a shard directory and lists all that is wrong with it. Nothing is written.

    Args:
        directory: what `ibtrain data prepare` wrote.
        workers: processes; each holds one shard at a time.
        progress: show a bar on stderr.
        known: what was found in shards that need not be looked at again.

    Raises:
        ShardsNotFoundError: no such directory, or nothing of ours is in it (a ValueError, too).
        RuntimeError: a process was killed.
    """
    bad: list[Problem] = []
    good, whole = _index(directory, bad)
    reports = {report.shard.name: report for report in known if report.shard in good}
    todo = [shard for shard in good if shard.name not in reports]
    for report in _examined(directory, todo, workers, progress):
        reports[report.shard.name] = report
    found = tuple(reports[shard.name] for shard in good)
    bad += [problem for report in found for problem in report.bad]
    bad += _repeated_ids(found)
    index = ShardIndex(directory, tuple(good), sum(s.samples for s in good)) if whole else None
    card = _card(directory, index, bad)
    if card is not None:
        bad += _foreign_records(found, card)
    return VerifyReport(
        records=sum(report.records for report in found),
        bad=tuple(bad),
        leftovers=_leftovers(directory, index, card),
        index=index,
        card=card,
        shards=found,
    )


def _index(directory: Path, bad: list[Problem]) -> tuple[list[ShardFile], bool]:
    """The shards whose entries can be used, and whether that is the whole index."""
    try:
        entries = index_entries(directory)
    except ValueError as error:
        is_ours = directory.is_dir() and ((directory / CARD).exists() or holds_shards(directory))
        if isinstance(error, FileNotFoundError) and not is_ours:
            raise
        bad.append(Problem(INDEX, None, _short(error)))
        return [], False
    faults = [entry for entry in entries if isinstance(entry, ValueError)]
    bad += [Problem(INDEX, None, _short(fault)) for fault in faults]
    return [entry for entry in entries if isinstance(entry, ShardFile)], not faults


def _examined(
    directory: Path, shards: list[ShardFile], workers: int, progress: bool
) -> Iterator[ShardReport]:
    """The report of each shard in order."""
    total = sum(shard.bytes for shard in shards)
    with tqdm(
        total=total, desc=directory.name, unit="B", unit_scale=True, disable=not progress
    ) as bar:
        if workers <= 1 or len(shards) <= 1:
            for shard in shards:
                yield examine_shard(directory, shard)
                bar.update(shard.bytes)
            return
        try:
            with ProcessPoolExecutor(
                min(workers, len(shards)), mp_context=get_context("spawn")
            ) as pool:
                for shard, report in _in_order(pool, directory, shards, 4 * workers):
                    yield report
                    bar.update(shard.bytes)
        except BrokenExecutor as error:
            raise RuntimeError(
                f"{directory}: a process that was reading shards ended early (killed, or out of "
                "memory); try again with fewer --workers"
            ) from error


def _in_order(
    pool: ProcessPoolExecutor, directory: Path, shards: list[ShardFile], window: int
) -> Iterator[tuple[ShardFile, ShardReport]]:
    left = iter(shards)
    waiting: list[tuple[ShardFile, Future[ShardReport]]] = []
    while True:
        for shard in islice(left, window - len(waiting)):
            waiting.append((shard, pool.submit(examine_shard, directory, shard)))
        if not waiting:
            return
        shard, future = waiting.pop(0)
        yield shard, future.result()


def examine_shard(directory: Path, shard: ShardFile) -> ShardReport:
    """Hashes one shard as stored and as unpacked, and decodes every record and image of it."""
    alone = ShardIndex(directory, (shard,), shard.samples)
    location = str(directory / shard.name)
    intact = False
    try:
        stored = stored_bytes(alone, shard)
        wrong = wrong_hashes(stored, shard.hashes)
        if wrong:
            raise ValueError(f"{wrong} differs from the index")
        intact = True
        raw = unpacked(stored, shard, location)
        wrong = wrong_hashes(raw, shard.raw_hashes) if shard.compressed else ""
        if wrong:
            raise ValueError(f"{wrong} of the unpacked shard differs from the index")
        return _examine_records(shard, split_samples(raw, shard.samples, location))
    except ValueError as error:
        bad = (Problem(shard.name, None, _short(error)),)
        return ShardReport(shard, intact, bad, np.zeros(0, np.int64), np.zeros(0, _IDENTITY))


def _examine_records(shard: ShardFile, samples: Iterable[bytes]) -> ShardReport:
    bad: list[Problem] = []
    unlisted = 0
    good = np.zeros(shard.samples, bool)
    identities = np.zeros(shard.samples, _IDENTITY)
    datasets: set[str] = set()
    for number, sample in enumerate(samples):
        try:
            dataset, identities[number] = _examine_record(sample)
            good[number] = True
            if len(datasets) < _NAMES:
                datasets.add(dataset)
        except ValueError as error:
            if len(bad) < _LISTED:
                bad.append(Problem(shard.name, number, _short(error)))
            else:
                unlisted += 1
    if unlisted:
        bad.append(Problem(shard.name, None, f"{unlisted} more of its records are bad"))
    return ShardReport(
        shard, True, tuple(bad), np.flatnonzero(good), identities[good], frozenset(datasets)
    )


def _examine_record(sample: bytes) -> tuple[str, Any]:
    """Decodes a record and its images; its dataset, and a hash of its id."""
    record = columns_to_record(decode_sample(sample))
    for position, image in enumerate(record.images, start=1):
        _check_image(image, f"image {position} of {len(record.images)}")
    digest = xxhash.xxh3_128(f"{record.dataset}\0{record.id}".encode()).digest()
    return record.dataset, np.frombuffer(digest, _IDENTITY)[0]


def _check_image(data: bytes, location: str) -> None:
    """Decodes a JPEG or PNG, the only forms that records hold; ValueError if it is damaged."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > MAXIMUM_PIXELS:
                raise ValueError(
                    f"{image.width} x {image.height} pixels, more than {MAXIMUM_PIXELS} allowed"
                )
            image.load()
    except _IMAGE_DAMAGE as error:
        raise ValueError(f"{location} is not readable: {error}") from error


def _repeated_ids(reports: tuple[ShardReport, ...]) -> list[Problem]:
    """Records whose id another, earlier one has already."""
    if not reports:
        return []
    identities = np.concatenate([report.identities for report in reports])
    numbers = np.concatenate([report.numbers for report in reports])
    ends = np.cumsum([len(report.identities) for report in reports])
    order = np.lexsort((np.arange(len(identities)), identities["low"], identities["high"]))
    rising = identities[order]
    repeats = np.flatnonzero(rising[1:] == rising[:-1]) + 1
    problems = []
    for repeat in repeats[: _LISTED * len(reports)]:
        at, earlier = int(order[repeat]), int(order[repeat - 1])
        shard, other = (
            reports[int(np.searchsorted(ends, n, "right"))].shard for n in (at, earlier)
        )
        problems.append(
            Problem(
                shard.name,
                int(numbers[at]),
                f"its id is that of record {numbers[earlier]} of {other.name}, too",
            )
        )
    return problems


def _card(directory: Path, index: ShardIndex | None, bad: list[Problem]) -> dict[str, Any] | None:
    """The card, once it is held against the index; None where it cannot be used."""
    try:
        card = read_card(directory)
    except ValueError as error:
        bad.append(Problem(CARD, None, _short(error)))
        return None
    if index is not None:
        bad += [Problem(CARD, None, reason) for reason in card_differences(card, index)]
    kept = _lines(directory / QUARANTINE)
    quarantined = card["report"]["quarantined"]
    if kept != quarantined:
        bad.append(
            Problem(QUARANTINE, None, f"{kept} lines, the card speaks of {quarantined} bad records")
        )
    return card


def _foreign_records(reports: tuple[ShardReport, ...], card: dict[str, Any]) -> list[Problem]:
    """Shards whose records are of another dataset than the card says."""
    own = card["report"]["dataset"]
    return [
        Problem(
            report.shard.name,
            None,
            f"holds records of {', '.join(sorted(report.datasets - {own}))}, the card is of {own}",
        )
        for report in reports
        if report.datasets - {own}
    ]


def _lines(path: Path) -> int:
    """Lines of a text file; none where it is missing."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _leftovers(
    directory: Path, index: ShardIndex | None, card: dict[str, Any] | None
) -> tuple[str, ...]:
    """Files that neither the index nor the card speaks of; none where the index is not whole.

    Where the card is not of that index, a shard that it does not name may be one that is missing.
    """
    if index is None:
        return ()
    expected = {INDEX, CARD, QUARANTINE, *(shard.name for shard in index.shards)}
    others = {path.name for path in directory.iterdir()} - expected
    if card is None or any(card_differences(card, index)):
        others = {name for name in others if ".mds" not in name}
    return tuple(sorted(others))


def _short(error: Exception) -> str:
    text = str(error)
    return text if len(text) <= _REASON else f"{text[:_REASON]}..."
