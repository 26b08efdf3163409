"""Records on disk as MDS shards: their columns, and reading them without trusting them.

index.py checks an index, format.py decodes the bytes of a shard; this is what both are for.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any

import xxhash

from ibtrain.data.records import Answer, Record
from ibtrain.data.shards.format import decode_sample, split_samples, unpack
from ibtrain.data.shards.index import (
    COLUMNS,
    DAMAGED,
    HASHES,
    ShardFile,
    ShardIndex,
    ShardsNotFoundError,
    check_index,
    fingerprint,
    hash_algorithm,
    open_inside,
    read_index,
)

COMPRESSION = "zstd:3"
_MAXIMUM_WEIGHT = 1e12

__all__ = [
    "COLUMNS",
    "COMPRESSION",
    "HASHES",
    "ShardFile",
    "ShardIndex",
    "ShardsNotFoundError",
    "check_index",
    "columns_to_record",
    "fingerprint",
    "hash_algorithm",
    "read_index",
    "read_records",
    "read_shard",
    "record_to_columns",
    "stored_bytes",
    "unpacked",
    "wrong_hashes",
]


def record_to_columns(record: Record) -> dict[str, Any]:
    """The columns of a record as MDS stores them."""
    return {
        "answers": [asdict(answer) for answer in record.answers],
        "dataset": record.dataset,
        "details": record.details,
        "form": record.form,
        "id": record.id,
        "image": b"".join(record.images),
        "image_sizes": [len(image) for image in record.images],
        "instructions": list(record.instructions),
        "plain": record.plain,
        "task": record.task,
    }


def columns_to_record(columns: dict[str, Any]) -> Record:
    """The record of decoded columns; ValueError naming the column that is not as written."""
    kinds = dict.fromkeys(("dataset", "form", "id", "plain", "task"), str) | {"image": bytes}
    for name, kind in kinds.items():
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
        images=_images(columns["image"], columns.get("image_sizes")),
        instructions=tuple(texts),
        answers=_answers(columns.get("answers")),
        form=columns["form"],
        plain=columns["plain"],
        details=columns["details"],
    )


def _images(data: bytes, sizes: object) -> tuple[bytes, ...]:
    if (
        not isinstance(sizes, list)
        or not all(type(size) is int and size > 0 for size in sizes)
        or sum(sizes) != len(data)
    ):
        raise ValueError("column 'image_sizes' does not list the bytes of each image")
    ends = list(accumulate(sizes))
    return tuple(data[end - size : end] for size, end in zip(sizes, ends, strict=True))


def _answers(value: object) -> tuple[Answer, ...]:
    """The answers, of which there are none where they are not public."""
    if not isinstance(value, list):
        raise ValueError("column 'answers' is no list of answers")
    answers = []
    for entry in value:
        if not isinstance(entry, dict) or set(entry) != {"text", "weight"}:
            raise ValueError("column 'answers' holds something else than text and weight")
        text, weight = entry["text"], entry["weight"]
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not isinstance(text, str) or not number or not 0 < weight <= _MAXIMUM_WEIGHT:
            raise ValueError("column 'answers' needs a string and a weight above 0")
        answers.append(Answer(text, float(weight)))
    return tuple(answers)


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
    location = str(index.directory / shard.name)
    stored = stored_bytes(index, shard)
    wrong = wrong_hashes(stored, dict([list(shard.hashes.items())[-1]]))
    if wrong:
        raise ValueError(f"{location}: {wrong} differs from the index; {DAMAGED}")
    raw = unpacked(stored, shard, location)
    for number, sample in enumerate(split_samples(raw, shard.samples, location)):
        try:
            yield columns_to_record(decode_sample(sample))
        except ValueError as error:
            raise ValueError(f"{location}, record {number}: {error}; {DAMAGED}") from error


def stored_bytes(index: ShardIndex, shard: ShardFile) -> bytes:
    """A shard's file as stored.

    Raises:
        ShardsNotFoundError: it is not there.
        ValueError: it is no plain file, of another size than the index says, or unreadable.
    """
    path = index.directory / shard.name
    with open_inside(index.directory, shard.name) as file:
        try:
            data = file.read(shard.bytes + 1)
        except OSError as error:
            raise ValueError(f"{path}: cannot be read: {error}") from error
    if len(data) != shard.bytes:
        found = len(data) if len(data) < shard.bytes else path.stat().st_size
        raise ValueError(f"{path}: {found} bytes, the index says {shard.bytes}; {DAMAGED}")
    return data


def unpacked(stored: bytes, shard: ShardFile, location: str) -> bytes:
    """The raw shard of a file as stored; ValueError naming `location` where it does not unpack."""
    return unpack(stored, shard.raw_bytes, location) if shard.compressed else stored


def wrong_hashes(data: bytes, hashes: dict[str, str]) -> str:
    """The names of those `hashes` that are not the data's, joined; empty where all are."""
    found = {
        "sha1": lambda: hashlib.sha1(data, usedforsecurity=False).hexdigest(),
        "xxh64": lambda: xxhash.xxh64(data).hexdigest(),
    }
    return ", ".join(name for name, text in hashes.items() if found[name]() != text)
