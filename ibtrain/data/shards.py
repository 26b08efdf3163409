"""Records on disk as MDS shards: their form, and reading them without trusting them.

An index names the files to read and how to decode every column, and the library that serves shards
believes it. So an index is checked here before anything is opened: only our columns with their
plain encodings, only file names without a path, only sizes within bounds and equal to the files'.
"""

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import xxhash
import zstd  # type: ignore[import-not-found, import-untyped, unused-ignore]

from ibtrain.data.records import Answer, Record

COLUMNS = {
    "answers": "json",
    "dataset": "str",
    "details": "json",
    "id": "str",
    "image": "bytes",
    "instructions": "json",
    "task": "str",
}
HASHES = ("sha1", "xxh64")
COMPRESSION = "zstd:3"
_INDEX = "index.json"
_MAXIMUM_INDEX_BYTES = 1 << 28
_MAXIMUM_SHARD_BYTES = 1 << 31
_MAXIMUM_SAMPLES = 1 << 31
_REMEDY = "run `ibtrain data prepare` to write it"


class ShardsNotFoundError(ValueError, FileNotFoundError):
    """A directory of shards, or a file that its index names, is not there."""


@dataclass(frozen=True)
class ShardFile:
    """One shard: its file as stored, and what it holds when decompressed."""

    name: str
    bytes: int
    hashes: dict[str, str]
    compressed: bool
    raw_bytes: int
    samples: int


@dataclass(frozen=True)
class ShardIndex:
    """A checked index; its shards in stored order."""

    directory: Path
    shards: tuple[ShardFile, ...]
    samples: int


@dataclass(frozen=True)
class BadShard:
    """A shard that is not what its index says."""

    shard: str
    reason: str

    def __str__(self) -> str:
        return f"{self.shard} ({self.reason})"


def record_to_columns(record: Record) -> dict[str, Any]:
    """The columns of a record as MDS stores them."""
    return {
        "answers": [asdict(answer) for answer in record.answers],
        "dataset": record.dataset,
        "details": record.details,
        "id": record.id,
        "image": record.image,
        "instructions": list(record.instructions),
        "task": record.task,
    }


def columns_to_record(columns: dict[str, Any]) -> Record:
    """The record of decoded columns; ValueError naming the column that is not as written."""
    for name, kind in (("dataset", str), ("id", str), ("task", str), ("image", bytes)):
        if not isinstance(columns.get(name), kind):
            raise ValueError(f"column {name!r} is no {kind.__name__}")
    texts = columns.get("instructions")
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise ValueError("column 'instructions' is no list of strings")
    if not isinstance(columns.get("details"), dict):
        raise ValueError("column 'details' is no object")
    return Record(
        dataset=columns["dataset"],
        task=columns["task"],
        id=columns["id"],
        image=columns["image"],
        instructions=tuple(texts),
        answers=_answers(columns.get("answers")),
        details=columns["details"],
    )


def _answers(value: object) -> tuple[Answer, ...]:
    answers = []
    for entry in value if isinstance(value, list) else ():
        if not isinstance(entry, dict) or set(entry) != {"text", "weight"}:
            raise ValueError("column 'answers' holds something else than text and weight")
        text, weight = entry["text"], entry["weight"]
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not isinstance(text, str) or not number or not 0 < weight < float("inf"):
            raise ValueError("column 'answers' needs a string and a weight above 0")
        answers.append(Answer(text, float(weight)))
    if not answers:
        raise ValueError("column 'answers' is no list of answers")
    return tuple(answers)


def check_index(directory: Path) -> ShardIndex:
    """Reads the index of `directory` and checks all that can be checked without opening a shard.

    Raises:
        ShardsNotFoundError: the directory or a file is missing (a ValueError, too).
        ValueError: the index is damaged, hostile, or does not fit the files.
    """
    path = directory / _INDEX
    if not directory.is_dir():
        raise ShardsNotFoundError(f"the shard directory {directory} is not there; {_REMEDY}")
    if not path.is_file():
        raise ShardsNotFoundError(f"{directory} holds no {_INDEX}; {_REMEDY}")
    if path.stat().st_size > _MAXIMUM_INDEX_BYTES:
        raise ValueError(f"{path}: larger than {_MAXIMUM_INDEX_BYTES} bytes")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON: {error}; {_REMEDY} anew") from error
    if not isinstance(content, dict) or content.get("version") != 2:
        raise ValueError(f"{path}: no MDS index of version 2")
    listed = content.get("shards")
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"{path}: 'shards' must be a list that is not empty")
    shards = tuple(
        _check_shard(directory, entry, f"{path}: shards[{index}]")
        for index, entry in enumerate(listed)
    )
    repeated = [name for name, count in Counter(s.name for s in shards).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: names {repeated[0]!r} more than once")
    return ShardIndex(directory, shards, sum(shard.samples for shard in shards))


def _check_shard(directory: Path, entry: object, place: str) -> ShardFile:
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: must be an object")
    expected = {
        "version": 2,
        "format": "mds",
        "column_names": list(COLUMNS),
        "column_encodings": list(COLUMNS.values()),
        "column_sizes": [None] * len(COLUMNS),
    }
    for key, value in expected.items():
        if entry.get(key) != value:
            found = repr(entry.get(key))[:200]
            raise ValueError(f"{place}: {key!r} must be {value}, found {found}")
    compression = entry.get("compression")
    compressed = entry.get("zip_data") is not None
    if compressed and not (isinstance(compression, str) and compression.split(":")[0] == "zstd"):
        raise ValueError(f"{place}: 'compression' must be zstd, found {repr(compression)[:200]}")
    samples = _whole(entry.get("samples"), 1, _MAXIMUM_SAMPLES, f"{place}: 'samples'")
    raw_name, raw_bytes, raw_hashes = _file_entry(entry.get("raw_data"), f"{place}: raw_data")
    name, size, hashes = raw_name, raw_bytes, raw_hashes
    if compressed:
        name, size, hashes = _file_entry(entry.get("zip_data"), f"{place}: zip_data")
    if set(hashes) != set(raw_hashes):
        raise ValueError(f"{place}: 'raw_data' and 'zip_data' have hashes of different algorithms")
    file = directory / name
    if not file.is_file():
        raise ShardsNotFoundError(f"{directory} lacks the shard {name}; {_REMEDY} anew")
    actual = file.stat().st_size
    if actual != size:
        raise ValueError(f"{file}: {actual} bytes, the index says {size}; {_REMEDY} anew")
    return ShardFile(name, size, hashes, compressed, raw_bytes, samples)


def _whole(value: object, low: int, high: int, place: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(
            f"{place} must be a whole number of {low} to {high}, found {repr(value)[:80]}"
        )
    return value


def _file_entry(value: object, place: str) -> tuple[str, int, dict[str, str]]:
    if not isinstance(value, dict):
        raise ValueError(f"{place} must be an object")
    name = value.get("basename")
    if (
        not isinstance(name, str)
        or not name
        or name.startswith(".")
        or any(mark in name for mark in "/\\\0")
    ):
        raise ValueError(f"{place}: {repr(name)[:200]} is no plain file name")
    size = _whole(value.get("bytes"), 1, _MAXIMUM_SHARD_BYTES, f"{place}: 'bytes'")
    hashes = value.get("hashes")
    if not isinstance(hashes, dict) or not all(isinstance(text, str) for text in hashes.values()):
        raise ValueError(f"{place}: 'hashes' must map algorithms to strings")
    known = {algorithm: hashes[algorithm] for algorithm in HASHES if algorithm in hashes}
    if not known:
        raise ValueError(f"{place}: 'hashes' has none of {', '.join(HASHES)}")
    return name, size, known


def hash_algorithm(index: ShardIndex) -> str:
    """The fastest hash that every shard of the index has; ValueError where none is in all."""
    for algorithm in reversed(HASHES):
        if all(algorithm in shard.hashes for shard in index.shards):
            return algorithm
    raise ValueError(
        f"{index.directory}: no hash algorithm is common to all shards; {_REMEDY} anew"
    )


def verify_shards(index: ShardIndex) -> list[BadShard]:
    """Hashes every file as stored; those that differ from the index, with the reason."""
    bad = []
    for shard in index.shards:
        digests: dict[str, Any] = {
            "sha1": hashlib.sha1(usedforsecurity=False),
            "xxh64": xxhash.xxh64(),
        }
        try:
            with (index.directory / shard.name).open("rb") as file:
                while block := file.read(1 << 20):
                    for digest in digests.values():
                        digest.update(block)
        except OSError as error:
            bad.append(BadShard(shard.name, f"not readable: {error.strerror}"))
            continue
        wrong = [name for name, text in shard.hashes.items() if digests[name].hexdigest() != text]
        if wrong:
            bad.append(BadShard(shard.name, f"{', '.join(wrong)} differs from the index"))
    return bad


def fingerprint(index: ShardIndex) -> str:
    """SHA-256 of what the shards hold: names, sizes, sample counts and hashes in stored order."""
    rows = [
        [shard.name, shard.bytes, shard.raw_bytes, shard.samples, shard.hashes]
        for shard in index.shards
    ]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def read_records(directory: Path) -> Iterator[Record]:
    """Every record in stored order; nothing is written, nothing but plain encodings decoded.

    Raises:
        ValueError: as check_index, or a shard is damaged; naming shard and record.
    """
    index = check_index(directory)
    for shard in index.shards:
        yield from read_shard(index, shard)


def read_shard(index: ShardIndex, shard: ShardFile) -> Iterator[Record]:
    """The records of one shard; ValueError naming it and the record that is damaged."""
    place = index.directory / shard.name
    data = place.read_bytes()
    if shard.compressed:
        data = _decompress(data, shard.raw_bytes, str(place))
    for number, sample in enumerate(_samples(data, shard.samples, str(place))):
        try:
            yield columns_to_record(_decode(sample))
        except (ValueError, struct.error, RecursionError) as error:
            raise ValueError(f"{place}, record {number}: {error}") from error


def _decompress(data: bytes, expected: int, place: str) -> bytes:
    """Refuses before unpacking what would give another size than the index says."""
    try:
        length, content = _zstd_frame(data)
        if length != len(data):
            raise ValueError(f"{len(data) - length} bytes after the end of the compressed data")
        if content != expected:
            raise ValueError(f"it would unpack to {content} bytes, the index says {expected}")
        return bytes(zstd.decompress(data))
    except (ValueError, IndexError, struct.error, zstd.Error) as error:
        raise ValueError(f"{place}: damaged: {error}") from error


def _zstd_frame(data: bytes) -> tuple[int, int]:
    """Bytes of the first frame in `data` and of its content (RFC 8878, section 3.1.1)."""
    if data[:4] != b"\x28\xb5\x2f\xfd":
        raise ValueError("no zstd data")
    descriptor = data[4]
    single_segment = descriptor >> 5 & 1
    size_bytes = (1 if single_segment else 0, 2, 4, 8)[descriptor >> 6]
    if not size_bytes:
        raise ValueError("the compressed data does not tell its size")
    position = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    content = int.from_bytes(data[position : position + size_bytes], "little")
    content += 256 if size_bytes == 2 else 0
    position += size_bytes
    while True:
        header = int.from_bytes(data[position : position + 3], "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        position += 3 + (1 if kind == 1 else size)
        if position > len(data):
            raise ValueError("the compressed data ends early")
        if last:
            return position + (4 if descriptor >> 2 & 1 else 0), content


def _samples(data: bytes, count: int, place: str) -> Iterator[bytes]:
    """The encoded samples of a raw shard: a count, count + 1 offsets, a header, the samples."""
    head = 4 * (count + 2)
    if len(data) < head or struct.unpack_from("<I", data)[0] != count:
        raise ValueError(f"{place}: does not hold the {count} samples that the index says")
    offsets = struct.unpack_from(f"<{count + 1}I", data, 4)
    if offsets[0] < head or offsets[-1] != len(data) or any(a > b for a, b in pairwise(offsets)):
        raise ValueError(f"{place}: the offsets of its samples are damaged")
    for begin, end in pairwise(offsets):
        yield data[begin:end]


def _decode(sample: bytes) -> dict[str, Any]:
    sizes = struct.unpack_from(f"<{len(COLUMNS)}I", sample)
    position = 4 * len(COLUMNS)
    if position + sum(sizes) != len(sample):
        raise ValueError("the sizes of its columns are damaged")
    columns: dict[str, Any] = {}
    for (name, encoding), size in zip(COLUMNS.items(), sizes, strict=True):
        value = sample[position : position + size]
        position += size
        if encoding == "bytes":
            columns[name] = value
        else:
            text = value.decode("utf-8")
            columns[name] = text if encoding == "str" else json.loads(text)
    return columns
