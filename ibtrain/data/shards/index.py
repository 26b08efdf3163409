"""The index of a shard directory, checked before anything that it names is opened.

An index names the files to read and how to decode every column, and a program that believes it can
be made to read outside the directory, to run code, or to unpack without end. So only our columns
with their plain encodings pass, only file names without a path, only files that are plain files of
the directory itself, and only sizes that are within bounds, fit each other and equal the files'.
"""

import hashlib
import json
import os
import re
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

COLUMNS = {
    "answers": "json",
    "dataset": "str",
    "details": "json",
    "form": "str",
    "id": "str",
    "image": "bytes",  # several end to end, as long as image_sizes says
    "image_sizes": "json",
    "instructions": "json",
    "plain": "str",
    "task": "str",
}
HASHES = ("sha1", "xxh64")
INDEX = "index.json"
REMEDY = "run `ibtrain data prepare` to write it"
REBUILD = "make it again from its shards: `ibtrain data verify {} --rebuild-index`"
DAMAGED = "copy it again (`ibtrain data verify --repair-from`), or prepare the dataset again"
_DIGITS = {"sha1": 40, "xxh64": 16}
_MAXIMUM_INDEX_BYTES = 1 << 26  # of some 70,000 shards
MAXIMUM_SHARD_BYTES = 1 << 30
MAXIMUM_RATIO = 256  # between a shard and its compressed file: images shrink by a few per cent,
FREE_BYTES = 1 << 24  # text by up to 50 times; a small shard may be anything
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class ShardsNotFoundError(ValueError, FileNotFoundError):
    """A directory of shards, or a file that its index names, is not there."""


@dataclass(frozen=True)
class ShardFile:
    """One shard: its file as stored, and what it holds when decompressed.

    Where it is not compressed, `raw_name`, `raw_bytes` and `raw_hashes` are those of the file.
    """

    name: str
    bytes: int
    hashes: dict[str, str]
    compressed: bool
    raw_name: str
    raw_bytes: int
    raw_hashes: dict[str, str]
    samples: int


@dataclass(frozen=True)
class ShardIndex:
    """A checked index; its shards in stored order."""

    directory: Path
    shards: tuple[ShardFile, ...]
    samples: int


def check_index(directory: Path) -> ShardIndex:
    """Reads the index of `directory` and checks all that can be checked without reading a shard.

    Raises:
        ShardsNotFoundError: the directory or a file is missing (a ValueError, too).
        ValueError: the index is damaged, hostile, or does not fit the files.
    """
    index = read_index(directory)
    for shard in index.shards:
        with open_inside(directory, shard.name) as file:
            actual = os.fstat(file.fileno()).st_size
        if actual != shard.bytes:
            raise ValueError(
                f"{directory / shard.name}: {actual} bytes, the index says {shard.bytes}; {DAMAGED}"
            )
    return index


def read_index(directory: Path) -> ShardIndex:
    """The index of `directory` alone, whether or not the files that it names are there.

    Raises:
        ShardsNotFoundError: the directory or its index is missing.
        ValueError: the index is damaged or hostile; the first thing that is wrong with it.
    """
    return _checked(directory, index_entries(directory))


def index_of(directory: Path, content: Any) -> ShardIndex:
    """An index of `directory` that is not written yet; ValueError as read_index."""
    return _checked(directory, _entries(directory, content))


def _checked(directory: Path, entries: "list[ShardFile | ValueError]") -> ShardIndex:
    shards = []
    for entry in entries:
        if isinstance(entry, ValueError):
            raise entry
        shards.append(entry)
    return ShardIndex(directory, tuple(shards), sum(shard.samples for shard in shards))


def index_entries(directory: Path) -> list[ShardFile | ValueError]:
    """Each entry of the index of `directory`, or what is wrong with it.

    Raises:
        ValueError: as read_index, where the index as a whole cannot be used.
    """
    if not directory.is_dir():
        raise ShardsNotFoundError(f"the shard directory {directory} is not there; {REMEDY}")
    return _entries(directory, read_json(directory, INDEX, _MAXIMUM_INDEX_BYTES))


def _entries(directory: Path, content: Any) -> list[ShardFile | ValueError]:
    path = directory / INDEX
    if not isinstance(content, dict) or content.get("version") != 2:
        raise ValueError(f"{path}: no MDS index of version 2; {DAMAGED}")
    listed = content.get("shards")
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"{path}: 'shards' must be a list that is not empty; {DAMAGED}")
    entries: list[ShardFile | ValueError] = []
    for number, entry in enumerate(listed):
        try:
            entries.append(_shard(entry, f"{path}: shards[{number}]"))
        except ValueError as error:
            entries.append(error)
    _refuse_repeats(path, [entry for entry in entries if isinstance(entry, ShardFile)])
    return entries


def _refuse_repeats(path: Path, shards: list[ShardFile]) -> None:
    names = Counter(name.casefold() for shard in shards for name in {shard.name, shard.raw_name})
    repeated = next((name for name, count in names.items() if count > 1), None)
    if repeated is not None:
        raise ValueError(f"{path}: names {repeated!r} more than once; {DAMAGED}")


def open_inside(directory: Path, name: str) -> BinaryIO:
    """Opens a plain file of `directory` for reading; nothing else is opened, or waited for.

    Raises:
        ShardsNotFoundError: there is no such file.
        ValueError: it is a link that leaves the directory, a pipe, a device or a folder, or it
            cannot be read.
    """
    path = directory / name
    try:
        if path.is_symlink() and path.resolve().parent != directory.resolve():
            raise ValueError(f"{path}: a link that leaves the directory; replace it by the file")
        # a pipe without a writer would be waited for
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        kind = "holds no" if name == INDEX else "lacks the file"
        remedy = REBUILD.format(directory) if name == INDEX and holds_shards(directory) else REMEDY
        raise ShardsNotFoundError(f"{directory} {kind} {name}; {remedy}") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself
        raise ValueError(f"{path}: cannot be read: {error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path}: no plain file; {DAMAGED}")
    return os.fdopen(descriptor, "rb")


def holds_shards(directory: Path) -> bool:
    """Whether there is a file with the name of a shard in `directory`."""
    return directory.is_dir() and any(directory.glob("*.mds*"))


def read_json(directory: Path, name: str, maximum_bytes: int) -> Any:
    """The content of a JSON file of `directory`; a repeated key is refused, as readers differ in
    which of the two they take.

    Raises:
        ValueError: as open_inside, or it is too large or no JSON.
    """
    path = directory / name
    with open_inside(directory, name) as file:
        text = file.read(maximum_bytes + 1)
    if len(text) > maximum_bytes:
        raise ValueError(f"{path}: larger than {maximum_bytes} bytes; {DAMAGED}")
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON: {str(error)[:200]}; {DAMAGED}") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {key[:80]!r} stands more than once in one object")
    return content


def _shard(entry: object, location: str) -> ShardFile:
    if not isinstance(entry, dict):
        raise ValueError(f"{location}: must be an object; {DAMAGED}")
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
            raise ValueError(f"{location}: {key!r} must be {value}, found {found}")
    compression = entry.get("compression")
    compressed = entry.get("zip_data") is not None
    if compressed and not (isinstance(compression, str) and compression.split(":")[0] == "zstd"):
        raise ValueError(f"{location}: 'compression' must be zstd, found {repr(compression)[:200]}")
    raw_name, raw_bytes, raw_hashes = _file(entry.get("raw_data"), f"{location}: raw_data")
    name, size, hashes = raw_name, raw_bytes, raw_hashes
    if compressed:
        name, size, hashes = _file(entry.get("zip_data"), f"{location}: zip_data")
        if raw_bytes > FREE_BYTES + MAXIMUM_RATIO * size:
            raise ValueError(
                f"{location}: {size} bytes that unpack to {raw_bytes}, more than {MAXIMUM_RATIO} "
                f"times as many: refused as a decompression bomb; {DAMAGED}"
            )
    if set(hashes) != set(raw_hashes):
        raise ValueError(
            f"{location}: 'raw_data' and 'zip_data' have hashes of different algorithms"
        )
    # a shard is a count, an offset more than there are samples, and the sizes of every column
    most = (raw_bytes - 8) // (4 + 4 * len(COLUMNS))
    samples = _whole(entry.get("samples"), 1, most, f"{location}: 'samples'")
    return ShardFile(name, size, hashes, compressed, raw_name, raw_bytes, raw_hashes, samples)


def _whole(value: object, low: int, high: int, location: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(
            f"{location} must be a whole number of {low} to {high}, found {repr(value)[:80]}; "
            f"{DAMAGED}"
        )
    return value


def _file(value: object, location: str) -> tuple[str, int, dict[str, str]]:
    """Name, bytes and known hashes of a file entry."""
    if not isinstance(value, dict):
        raise ValueError(f"{location} must be an object; {DAMAGED}")
    name = value.get("basename")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".mds" not in name:
        raise ValueError(
            f"{location}: {repr(name)[:200]} is no plain file name of a shard "
            "(letters, digits, '.', '_' and '-', with '.mds' in it)"
        )
    size = _whole(value.get("bytes"), 1, MAXIMUM_SHARD_BYTES, f"{location}: 'bytes'")
    hashes = value.get("hashes")
    if not isinstance(hashes, dict):
        raise ValueError(f"{location}: 'hashes' must map algorithms to strings; {DAMAGED}")
    known = {algorithm: hashes[algorithm] for algorithm in HASHES if algorithm in hashes}
    if not known:
        raise ValueError(f"{location}: 'hashes' has none of {', '.join(HASHES)}; prepare it again")
    for algorithm, text in known.items():
        digits = _DIGITS[algorithm]
        if not isinstance(text, str) or not re.fullmatch(f"[0-9a-f]{{{digits}}}", text):
            raise ValueError(
                f"{location}: the hash {algorithm} must be {digits} hexadecimal digits, "
                f"found {repr(text)[:80]}; {DAMAGED}"
            )
    return name, size, known


def hash_algorithm(index: ShardIndex) -> str:
    """The fastest hash that every shard of the index has; ValueError where none is in all."""
    for algorithm in reversed(HASHES):
        if all(algorithm in shard.hashes for shard in index.shards):
            return algorithm
    raise ValueError(f"{index.directory}: no hash algorithm is common to all shards; {REMEDY} anew")


def fingerprint(index: ShardIndex) -> str:
    """SHA-256 of what the shards hold: names, sizes, sample counts and hashes in stored order."""
    rows = [
        [
            shard.name,
            shard.bytes,
            shard.hashes,
            shard.raw_name,
            shard.raw_bytes,
            shard.raw_hashes,
            shard.samples,
        ]
        for shard in index.shards
    ]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
