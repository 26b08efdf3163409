"""The index of a shard directory that has lost it, made again from the shards themselves.

A shard repeats in its header what its index says of the columns; sizes, sample counts and hashes
follow from its bytes. What a card says of the index, by its fingerprint, must hold of the new one.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import xxhash
import zstandard

from ibtrain.data.shards.card import CARD, card_differences, read_card
from ibtrain.data.shards.format import sample_offsets, unpack
from ibtrain.data.shards.index import (
    COLUMNS,
    DAMAGED,
    FREE_BYTES,
    HASHES,
    INDEX,
    MAXIMUM_RATIO,
    MAXIMUM_SHARD_BYTES,
    ShardIndex,
    ShardsNotFoundError,
    index_of,
    open_inside,
    read_index,
)
from ibtrain.files import write_whole

_SHARD = re.compile(r"shard\.(\d{5,9})\.mds(\.zstd)?")
_MAXIMUM_HEADER_BYTES = 1 << 16


def rebuild_index(directory: Path) -> ShardIndex:
    """Writes the index of the shards in `directory`, which has none that can be read.

    Args:
        directory: what `ibtrain data prepare` wrote.

    Raises:
        ShardsNotFoundError: there is no such directory, or no shard in it (a ValueError, too).
        ValueError: an index is there already; a shard is damaged, missing or not of ours; or the
            card speaks of other shards. Nothing is written then.
        OSError: the index cannot be written.
    """
    _refuse_a_good_index(directory)
    entries = [_entry(directory, name) for name in _shard_names(directory)]
    document = {"version": 2, "shards": entries}
    index = index_of(directory, document)
    if (directory / CARD).exists():
        differences = list(card_differences(read_card(directory), index))
        if differences:
            raise ValueError(
                f"{directory}: the shards are not those of {CARD}: it {differences[0]}; {DAMAGED}"
            )
    write_whole(directory / INDEX, json.dumps(document, sort_keys=True))
    return index


def _refuse_a_good_index(directory: Path) -> None:
    try:
        read_index(directory)
    except ValueError:
        return
    raise ValueError(f"{directory / INDEX} is there and can be read; nothing is rebuilt")


def _shard_names(directory: Path) -> list[str]:
    """The shards' files in their order; those that are not numbered from 0 on are refused."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    # An unpacked copy may lie beside a compressed shard; the index is of what is compressed.
    found = [
        match
        for match in map(_SHARD.fullmatch, names)
        if match is not None and (match[2] or f"{match[0]}.zstd" not in names)
    ]
    if not found:
        raise ShardsNotFoundError(f"{directory} holds no shard that an index could be made of")
    ordered = sorted(found, key=lambda match: (int(match[1]), match[0]))
    for number, match in enumerate(ordered):
        if int(match[1]) != number:
            raise ValueError(
                f"{directory}: {match[0]} stands where shard {number} is expected, so one is "
                f"missing; {DAMAGED}"
            )
    return [match[0] for match in ordered]


def _entry(directory: Path, name: str) -> dict[str, Any]:
    """What an index says of a shard, by its bytes alone."""
    path = directory / name
    with open_inside(directory, name) as file:
        size = os.fstat(file.fileno()).st_size
        if not 0 < size <= MAXIMUM_SHARD_BYTES:
            raise ValueError(f"{path}: {size} bytes, no size of a shard; {DAMAGED}")
        stored = file.read(size + 1)
    compressed = name.endswith(".zstd")
    raw = unpack(stored, _raw_bytes(stored, str(path)), str(path)) if compressed else stored
    header, samples = _header(raw, str(path))
    hashes = [algorithm for algorithm in HASHES if algorithm in header["hashes"]]
    raw_data = _described(name.removesuffix(".zstd"), raw, hashes)
    zip_data = _described(name, stored, hashes) if compressed else None
    compression = header.get("compression") if compressed else None
    return {**header, "compression": compression, "samples": samples} | {
        "raw_data": raw_data,
        "zip_data": zip_data,
    }


def _raw_bytes(stored: bytes, location: str) -> int:
    """How large a compressed shard says it will be; no more than an index may say."""
    try:
        size = int(zstandard.get_frame_parameters(stored).content_size)
    except zstandard.ZstdError as error:
        raise ValueError(f"{location}: damaged: {error}; {DAMAGED}") from error
    if size > min(MAXIMUM_SHARD_BYTES, FREE_BYTES + MAXIMUM_RATIO * len(stored)):
        raise ValueError(f"{location}: would unpack to {size} bytes, which is no shard; {DAMAGED}")
    return size


def _header(raw: bytes, location: str) -> tuple[dict[str, Any], int]:
    """The header of a raw shard, held against our columns, and its count of samples."""
    samples = int.from_bytes(raw[:4], "little")
    if not 0 < samples <= len(raw) // (4 + 4 * len(COLUMNS)):
        raise ValueError(f"{location}: is no shard, or a damaged one; {DAMAGED}")
    begin = 4 * (samples + 2)
    end = int(sample_offsets(raw[:begin], len(raw), samples, location)[0])
    if end - begin > _MAXIMUM_HEADER_BYTES:
        raise ValueError(f"{location}: its header has {end - begin} bytes, too many; {DAMAGED}")
    try:
        header = json.loads(raw[begin:end].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{location}: its header is damaged: {str(error)[:200]}; {DAMAGED}"
        ) from error
    if not isinstance(header, dict) or header.get("column_names") != list(COLUMNS):
        raise ValueError(
            f"{location}: its columns are not those that `ibtrain data prepare` writes"
        )
    if not isinstance(header.get("hashes"), list):
        raise ValueError(f"{location}: its header names no hashes; {DAMAGED}")
    kept = ("column_encodings", "column_names", "column_sizes", "compression", "format", "hashes")
    return {key: header.get(key) for key in (*kept, "size_limit", "version")}, samples


def _described(name: str, data: bytes, algorithms: list[str]) -> dict[str, Any]:
    digests = {
        "sha1": lambda: hashlib.sha1(data, usedforsecurity=False).hexdigest(),
        "xxh64": lambda: xxhash.xxh64_hexdigest(data),
    }
    hashes = {algorithm: digests[algorithm]() for algorithm in algorithms}
    return {"basename": name, "bytes": len(data), "hashes": hashes}
