"""The bytes of an MDS shard: unpacking one within bounds, finding its samples, decoding them.

A raw shard is a count of samples (4 bytes, little-endian), one offset more than there are samples,
a header that repeats what the index says, and the samples. A sample is the size of every column (4
bytes each) and the columns.

Streaming's own MDSReader reads the same bytes, and a test holds both against each other. It takes a
file at its word; here no number is trusted before it is held against the data: what a frame unpacks
to and in what window, offsets that rise and end with the file, sizes of columns that fill a sample,
JSON of bounded size and depth, and none but the encodings that our columns have (no pickle).
"""

import json
import os
import struct
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from ibtrain.data.shards.index import COLUMNS, DAMAGED, open_inside

MAXIMUM_DEPTH = 32  # of lists and objects within each other in a column
_MAXIMUM_JSON_BYTES = 1 << 24
_MAXIMUM_WINDOW_BYTES = 1 << 27  # as zstd's own command line allows
_SIZES = struct.Struct(f"<{len(COLUMNS)}I")


def unpack(data: bytes, expected: int, location: str) -> bytes:
    """Decompresses a zstd shard, after its header says that this gives what the index says.

    Memory is bounded by `expected`: the library decompresses at once, into a buffer of what the
    header names, and stops where that is full.

    Args:
        data: the file as stored.
        expected: bytes of the raw shard.
        location: the file, for messages.

    Raises:
        ValueError: damaged, of another size, of several frames, or asking for too much memory.
    """
    try:
        frame = zstandard.get_frame_parameters(data)
        if frame.content_size == zstandard.CONTENTSIZE_UNKNOWN:
            raise ValueError("the compressed data does not tell its size")
        if frame.content_size != expected:
            raise ValueError(
                f"it would unpack to {frame.content_size} bytes, the index says {expected}"
            )
        if frame.window_size > _MAXIMUM_WINDOW_BYTES:
            raise ValueError(f"unpacking it would take a window of {frame.window_size} bytes")
        raw = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
        if len(raw) != expected:
            raise ValueError(f"it unpacked to {len(raw)} bytes, the index says {expected}")
    except (ValueError, zstandard.ZstdError) as error:
        raise ValueError(f"{location}: damaged: {error}; {DAMAGED}") from error
    return raw


def sample_offsets(head: bytes, size: int, count: int, location: str) -> npt.NDArray[np.int64]:
    """Where the samples of a raw shard begin, and the end of the last.

    Args:
        head: the first 4 * (count + 2) bytes of the shard, or more.
        size: bytes of the whole shard.
        count: samples, as the index says.
        location: the file, for messages.

    Returns:
        [count + 1], rising, the last one `size`.

    Raises:
        ValueError: the count is another, or the offsets do not fit the shard.
    """
    table = 4 * (count + 2)
    if len(head) < table or int.from_bytes(head[:4], "little") != count:
        raise ValueError(
            f"{location}: does not hold the {count} samples that the index says; {DAMAGED}"
        )
    offsets = np.frombuffer(head, "<u4", count + 1, 4).astype(np.int64)
    if offsets[0] < table or offsets[-1] != size or (np.diff(offsets) < _SIZES.size).any():
        raise ValueError(f"{location}: the offsets of its samples are damaged; {DAMAGED}")
    return offsets


def split_samples(raw: bytes, count: int, location: str) -> Iterator[bytes]:
    """The encoded samples of a whole raw shard in order; ValueError as sample_offsets."""
    offsets = sample_offsets(raw[: 4 * (count + 2)], len(raw), count, location).tolist()
    for begin, end in pairwise(offsets):
        yield raw[begin:end]


def decode_sample(sample: bytes) -> dict[str, Any]:
    """The columns of an encoded sample; ValueError where it is damaged."""
    if len(sample) < _SIZES.size:
        raise ValueError("too short to be a sample")
    sizes = _SIZES.unpack_from(sample)
    position = _SIZES.size
    if position + sum(sizes) != len(sample):
        raise ValueError("the sizes of its columns are damaged")
    columns: dict[str, Any] = {}
    for (name, encoding), size in zip(COLUMNS.items(), sizes, strict=True):
        value = sample[position : position + size]
        position += size
        try:
            columns[name] = _DECODERS[encoding](value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"column {name!r} is damaged: {str(error)[:200]}") from error
    return columns


def _parse(value: bytes) -> Any:
    """A JSON value that is not nested too deeply and can be written as UTF-8 again."""
    if len(value) > _MAXIMUM_JSON_BYTES:
        raise ValueError(f"{len(value)} bytes, more than {_MAXIMUM_JSON_BYTES}")
    content = json.loads(value.decode("utf-8"))
    if value.count(b"[") + value.count(b"{") > MAXIMUM_DEPTH and _depth(content) > MAXIMUM_DEPTH:
        raise ValueError(f"nested more than {MAXIMUM_DEPTH} deep")
    if b"\\u" in value:  # may be half a surrogate pair
        json.dumps(content, ensure_ascii=False).encode("utf-8")
    return content


def _depth(content: Any) -> int:
    """How many lists and objects are within each other."""
    depth, level = 0, [content]
    while level:
        inner = [value for value in level if isinstance(value, (list, dict))]
        depth += bool(inner)
        level = [
            value
            for group in inner
            for value in (group.values() if isinstance(group, dict) else group)
        ]
    return depth


_DECODERS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "str": lambda value: value.decode("utf-8"),
    "json": _parse,
}


class RawShard:
    """A raw shard file whose samples are read one by one, from any number of threads.

    Args:
        directory: where it lies.
        name: its file name.
        size: bytes, as the index says.
        samples: how many, as the index says.

    Raises:
        ValueError: it is not there, no plain file, or not as the index says.
    """

    def __init__(self, directory: Path, name: str, size: int, samples: int) -> None:
        self.location = str(directory / name)
        self._file = open_inside(directory, name)
        try:
            actual = os.fstat(self._file.fileno()).st_size
            if actual != size:
                raise ValueError(
                    f"{self.location}: {actual} bytes, the index says {size}; {DAMAGED}"
                )
            head = self._read(0, min(size, 4 * (samples + 2)))
            self._offsets = sample_offsets(head, size, samples, self.location)
        except (ValueError, OSError):
            self._file.close()
            raise

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def columns(self, number: int) -> dict[str, Any]:
        """The decoded columns of a sample; ValueError naming shard and record."""
        begin, end = int(self._offsets[number]), int(self._offsets[number + 1])
        try:
            return decode_sample(self._read(begin, end - begin))
        except ValueError as error:
            raise ValueError(f"{self.location}, record {number}: {error}; {DAMAGED}") from error

    def text(self, number: int, column: str) -> str:
        """One "str" column of a sample, without reading the others; ValueError as columns."""
        begin, end = int(self._offsets[number]), int(self._offsets[number + 1])
        position = list(COLUMNS).index(column)
        sizes = _SIZES.unpack(self._read(begin, _SIZES.size))
        skipped = _SIZES.size + sum(sizes[:position])
        try:
            if skipped + sizes[position] > end - begin:
                raise ValueError("the sizes of its columns are damaged")
            return self._read(begin + skipped, sizes[position]).decode("utf-8")
        except ValueError as error:
            raise ValueError(f"{self.location}, record {number}: {error}; {DAMAGED}") from error

    def _read(self, begin: int, size: int) -> bytes:
        return os.pread(self._file.fileno(), size, begin)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> "RawShard":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
