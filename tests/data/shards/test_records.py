import json
import os
import pickle
import resource
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import zstandard

from ibtrain.data.records import Record
from ibtrain.data.shards import records
from ibtrain.data.shards.format import RawShard
from ibtrain.data.shards.records import (
    check_index,
    columns_to_record,
    read_records,
    record_to_columns,
)
from tests.data.shard_directories import (
    jpeg,
    put,
    record,
    replace_raw,
    replace_stored,
    write_shards,
)
from tests.data.shards.samples import FIRST, RAW, change

RECORDS = [
    record(0),
    record(1, images=(jpeg(1), jpeg(2)), details={"deep": [[{"a": None}]]}),
    record(2, images=(), answers=(), plain="", instructions=("日本語 😀",)),
    *(record(number) for number in range(3, 40)),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three compressed shards."""
    return write_shards(tmp_path_factory.mktemp("shards") / "vqav2", RECORDS, shard_bytes=16_000)


@pytest.fixture(scope="module")
def written_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards that are not compressed."""
    directory = tmp_path_factory.mktemp("shards") / "vqav2"
    return write_shards(directory, RECORDS, compression=None, shard_bytes=16_000)


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "vqav2"))


@pytest.fixture
def copied_raw(written_raw: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written_raw, tmp_path / "raw"))


def test_columns_and_record_are_inverse():
    for value in RECORDS:
        assert columns_to_record(record_to_columns(value)) == value
    assert set(record_to_columns(RECORDS[0])) == set(records.COLUMNS)


def test_records_are_read_as_written(written: Path, written_raw: Path):
    assert list(read_records(written)) == RECORDS == list(read_records(written_raw))
    assert len(check_index(written).shards) == len(check_index(written_raw).shards) == 3


def test_streaming_reads_the_same_records(copied: Path):
    from streaming import StreamingDataset

    dataset = StreamingDataset(local=str(copied), batch_size=1)
    assert [columns_to_record(dataset[index]) for index in range(len(dataset))] == RECORDS


def test_a_raw_shard_is_read_record_by_record(written_raw: Path):
    given = []
    for shard in check_index(written_raw).shards:
        with RawShard(written_raw, shard.name, shard.bytes, shard.samples) as opened:
            assert len(opened) == shard.samples
            backwards = [columns_to_record(opened.columns(n)) for n in reversed(range(len(opened)))]
            given += backwards[::-1]
    assert given == RECORDS


def test_a_raw_shard_that_is_not_as_its_index_says_is_refused(copied_raw: Path):
    shard = check_index(copied_raw).shards[0]
    for size, samples, message in (
        (shard.bytes + 1, shard.samples, f"{shard.bytes} bytes, the index says"),
        (shard.bytes, shard.samples + 1, "does not hold the"),
        (shard.bytes, 1 << 40, "does not hold the"),
    ):
        with pytest.raises(ValueError, match=message):
            RawShard(copied_raw, shard.name, size, samples)
    data = bytearray((copied_raw / shard.name).read_bytes())
    data[-1] ^= 0xFF  # the last column of the last record is its task
    (copied_raw / shard.name).write_bytes(data)
    with (
        RawShard(copied_raw, shard.name, shard.bytes, shard.samples) as opened,
        pytest.raises(ValueError, match=rf"{shard.name}, record {shard.samples - 1}: .*'task'"),
    ):
        opened.columns(shard.samples - 1)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("image", "text"),
        ("id", 5),
        ("form", None),
        ("plain", 1),
        ("instructions", []),
        ("instructions", [1]),
        ("details", []),
        ("image_sizes", [2]),
        ("image_sizes", [10**30, -(10**30)]),
        ("image_sizes", [True]),
        ("image_sizes", None),
        ("answers", None),
        ("answers", {"text": "a"}),
        ("answers", [{"text": "a"}]),
        ("answers", [{"text": "a", "weight": 1, "more": 1}]),
        ("answers", [{"text": "a", "weight": 0}]),
        ("answers", [{"text": "a", "weight": True}]),
        ("answers", [{"text": "a", "weight": float("nan")}]),
        ("answers", [{"text": "a", "weight": float("inf")}]),
        ("answers", [{"text": "a", "weight": 10**400}]),
    ],
)
def test_other_columns_are_refused_by_name(column: str, value: object):
    with pytest.raises(ValueError, match=f"column '{column}'"):
        columns_to_record({**record_to_columns(RECORDS[0]), column: value})


def test_a_pickle_is_never_opened(copied: Path, tmp_path: Path):
    class Payload:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    replace_stored(copied, pickle.dumps(Payload()))
    change(copied, put("shards", 0, "column_encodings", value=["pkl"] * len(records.COLUMNS)))
    with pytest.raises(ValueError, match="'column_encodings' must be"):
        list(read_records(copied))
    assert not (tmp_path / "ran").exists()


def windowed(content: bytes, exponent: int) -> bytes:
    """A zstd frame of one raw block that asks for a window of 2 ** (10 + exponent) bytes."""
    head = b"\x28\xb5\x2f\xfd" + bytes([0b10000000, exponent << 3])
    block = len(content) << 3 | 1
    return head + struct.pack("<I", len(content)) + block.to_bytes(3, "little") + content


def swelling(size: int, blocks: int) -> bytes:
    """A zstd frame that names `size` bytes and holds blocks that repeat one byte 2 ** 17 times."""
    head = b"\x28\xb5\x2f\xfd" + bytes([0b10000000, 10 << 3]) + struct.pack("<I", size)
    block = ((1 << 17) << 3 | 1 << 1).to_bytes(3, "little") + b"a"
    return head + block * blocks


def test_a_shard_that_unpacks_to_something_else_is_refused(copied: Path):
    good = (copied / FIRST).read_bytes()
    raw = zstandard.decompress(good)
    replace_stored(copied, windowed(raw, 10))
    assert list(read_records(copied)) == RECORDS
    hostile = {
        "would unpack to 16777216 bytes": zstandard.compress(bytes(1 << 24)),
        "bytes of unused data": good + zstandard.compress(bytes(1 << 24)),
        "did not decompress full frame": good[:-100],
        "Unknown frame descriptor": b"PK\x03\x04" * 20,
        "a window of 268435456 bytes": windowed(raw, 18),
        "too much memory": windowed(raw, 31),
        "does not tell its size": b"\x28\xb5\x2f\xfd\x00\x58\x01\x00\x00",
        "did not decompress": good[:7] + bytes(4 << 20),
        "Destination buffer is too small": swelling(len(raw), 1 << 16),  # to 8 GiB
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for message, data in hostile.items():
        replace_stored(copied, data)
        with pytest.raises(ValueError, match=message) as error:
            list(read_records(copied))
        assert FIRST in str(error.value)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000  # KiB


def test_a_bomb_that_the_index_agrees_with_is_refused(copied: Path):
    bomb = zstandard.compress(bytes(1 << 29))
    replace_stored(copied, bomb)
    change(copied, put(*RAW, "bytes", value=1 << 29))
    with pytest.raises(ValueError, match="refused as a decompression bomb"):
        list(read_records(copied))


def test_a_flipped_bit_is_found(copied: Path):
    path = copied / FIRST
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{FIRST}: xxh64 differs from the index; copy it again"):
        list(read_records(copied))


def raw_of(directory: Path) -> bytearray:
    return bytearray(zstandard.decompress((directory / FIRST).read_bytes()))


def test_flipped_bytes_within_a_shard_give_records_or_a_named_error(copied: Path):
    raw = raw_of(copied)
    for position in range(0, 2000, 7):
        damaged = bytearray(raw)
        damaged[position] ^= 0xA5
        replace_raw(copied, bytes(damaged))
        try:
            assert all(isinstance(value, Record) for value in read_records(copied))
        except ValueError as error:
            assert "shard.00000" in str(error)


def encoded(value: Record, **columns: bytes) -> bytes:
    """A record as MDS stores it, some of its columns replaced by these bytes."""
    plain: dict[str, Any] = record_to_columns(value)
    parts = []
    for name, encoding in records.COLUMNS.items():
        content = plain[name]
        data = {
            "bytes": lambda content=content: content,
            "str": lambda content=content: content.encode(),
            "json": lambda content=content: json.dumps(content).encode(),
        }[encoding]()
        parts.append(columns.get(name, data))
    return struct.pack(f"<{len(parts)}I", *map(len, parts)) + b"".join(parts)


def one_record_shard(directory: Path, sample: bytes) -> None:
    raw = struct.pack("<III", 1, 12, 12 + len(sample)) + sample
    replace_raw(directory, raw)
    change(directory, lambda content: content.update(shards=content["shards"][:1]))
    change(directory, put("shards", 0, "samples", value=1))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"details": b"[" * 100_000}, "'details' is damaged: .*recursion"),
        ({"details": b'{"a":' + b"[" * 40 + b"]" * 40 + b"}"}, "nested more than 32 deep"),
        ({"details": b'{"a": "\\ud800"}'}, "'details' is damaged: .*surrogates"),
        ({"details": b'{"a": ' + b"9" * 5000 + b"}"}, "'details' is damaged"),
        ({"details": b'"' + b" " * (1 << 24) + b'"'}, "'details' is damaged: 16777218 bytes"),
        ({"instructions": b"\xff"}, "'instructions' is damaged"),
        ({"id": b"\xc3"}, "'id' is damaged"),
        ({"image_sizes": b"[1]"}, "'image_sizes' does not list"),
        ({"answers": b'[{"text": "a", "weight": 1e999}]'}, "a weight above 0"),
    ],
)
def test_a_hostile_column_is_named(copied: Path, columns: dict[str, bytes], message: str):
    one_record_shard(copied, encoded(RECORDS[0]))
    assert list(read_records(copied)) == [RECORDS[0]]
    one_record_shard(copied, encoded(RECORDS[0], **columns))
    with pytest.raises(ValueError, match=rf"(?s)shard.00000.mds.zstd, record 0: .*{message}"):
        list(read_records(copied))


def test_reading_writes_nothing(copied: Path):
    before = {path.name: path.stat().st_mtime_ns for path in copied.iterdir()}
    copied.chmod(0o555)
    assert len(list(read_records(copied))) == len(RECORDS)
    copied.chmod(0o755)
    assert {path.name: path.stat().st_mtime_ns for path in copied.iterdir()} == before
