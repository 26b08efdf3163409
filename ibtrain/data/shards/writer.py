"""Writes records as MDS shards; until they are compressed, byte for byte as Streaming's MDSWriter.

Importing that takes each process of a conversion ten times as long as importing this, needs every
compression library that it knows, and it passes over what goes wrong in its threads. A test holds
both writers and both readers against each other. The format: a count, the offsets of the samples,
the columns as JSON, the samples; a sample is the sizes of its columns and their values (format.py
reads it).
"""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zstandard

from ibtrain.data.shards.records import COLUMNS, COMPRESSION, HASHES

SHARD_BYTES = 1 << 26  # uncompressed
_LEVEL = int(COMPRESSION.partition(":")[2])
_SIZES = struct.Struct(f"<{len(COLUMNS)}I")


def encode_sample(columns: dict[str, Any]) -> bytes:
    """A sample as a shard holds it; ValueError where a text is none (a lone surrogate)."""
    values = []
    for name, encoding in COLUMNS.items():
        value = columns[name]
        if encoding != "bytes":
            value = (json.dumps(value) if encoding == "json" else value).encode("utf-8")
        values.append(value)
    return _SIZES.pack(*map(len, values)) + b"".join(values)


class ShardWriter:
    """Writes shards of at most `shard_bytes` into a directory, one after the other.

    A sample that is larger than that has a shard of its own. `entries` are those of the index; they
    are complete, and all files are there, after `finish`.
    """

    def __init__(self, directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self.entries: list[dict[str, Any]] = []
        self._directory = directory
        self._config: dict[str, Any] = {
            "column_encodings": list(COLUMNS.values()),
            "column_names": list(COLUMNS),
            "column_sizes": [None] * len(COLUMNS),
            "compression": COMPRESSION,
            "format": "mds",
            "hashes": list(HASHES),
            "size_limit": shard_bytes,
            "version": 2,
        }
        self._header = json.dumps(self._config, sort_keys=True).encode("utf-8")
        self._limit = shard_bytes - len(self._header) - 8
        self._samples: list[bytes] = []
        self._bytes = 0

    def write(self, sample: bytes) -> None:
        """Adds a sample as `encode_sample` gives it."""
        size = len(sample) + 4
        if self._samples and self._bytes + size > self._limit:
            self.finish()
        self._samples.append(sample)
        self._bytes += size

    def finish(self) -> None:
        """Writes what is left."""
        if not self._samples:
            return
        sizes = np.array([len(sample) for sample in self._samples], np.int64)
        begin = 4 * (len(sizes) + 2) + len(self._header)
        offsets = begin + np.concatenate([[0], np.cumsum(sizes)])
        head = struct.pack("<I", len(sizes)) + offsets.astype("<u4").tobytes() + self._header
        raw = head + b"".join(self._samples)
        stored = zstandard.ZstdCompressor(level=_LEVEL).compress(raw)
        name = f"shard.{len(self.entries):05}.mds"
        (self._directory / f"{name}.zstd").write_bytes(stored)
        self.entries.append(
            {
                **self._config,
                "samples": len(self._samples),
                "raw_data": _described(name, raw),
                "zip_data": _described(f"{name}.zstd", stored),
            }
        )
        self._samples, self._bytes = [], 0


def _described(name: str, data: bytes) -> dict[str, Any]:
    hashes = {
        "sha1": hashlib.sha1(data, usedforsecurity=False).hexdigest(),
        "xxh64": xxhash.xxh64_hexdigest(data),
    }
    return {"basename": name, "bytes": len(data), "hashes": hashes}
