import json
import os
import pickle
import resource
import shutil
import struct
from collections.abc import Callable
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
    fingerprint,
    hash_algorithm,
    read_index,
    read_records,
    record_to_columns,
)
from tests.data.shard_directories import (
    change_json,
    jpeg,
    put,
    record,
    replace_raw,
    replace_stored,
    write_shards,
)

RECORDS = [
    record(0),
    record(1, images=(jpeg(1), jpeg(2)), details={"deep": [[{"a": None}]]}),
    record(2, images=(), answers=(), plain="", instructions=("日本語 😀",)),
    *(record(number) for number in range(3, 40)),
]
FIRST = "shard.00000.mds.zstd"


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


def change(directory: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    change_json(directory / "index.json", edit)


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


def test_what_is_missing_is_named_with_the_remedy(copied: Path, tmp_path: Path):
    for kind in (ValueError, FileNotFoundError):
        with pytest.raises(kind, match="none is not there; run `ibtrain data prepare"):
            check_index(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no index"):
        check_index(tmp_path / "empty")
    (copied / FIRST).unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks the file shard\.00000"):
        check_index(copied)
    assert read_index(copied).samples == len(RECORDS)


ENCODINGS = list(records.COLUMNS.values())
ZIP, RAW = ("shards", 0, "zip_data"), ("shards", 0, "raw_data")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put("version", value=1), "version 2"),
        (put("shards", value=[]), "'shards' must be a list"),
        (put("shards", value={"0": 1}), "'shards' must be a list"),
        (put("shards", 0, value=5), "must be an object"),
        (put("shards", 0, "version", value=3), "'version' must be 2"),
        (put("shards", 0, "format", value="json"), "'format' must be mds"),
        (put("shards", 0, "column_encodings", 6, value="pkl"), "'column_encodings' must be"),
        (put("shards", 0, "column_encodings", 5, value="jpeg"), "'column_encodings' must be"),
        (put("shards", 0, "column_encodings", value=ENCODINGS[::-1]), "'column_encodings' must"),
        (put("shards", 0, "column_encodings", value="json"), "'column_encodings' must be"),
        (put("shards", 0, "column_names", 0, value="answer"), "'column_names' must be"),
        (put("shards", 0, "column_names", value=[*records.COLUMNS][::-1]), "'column_names' must"),
        (put("shards", 0, "column_sizes", 0, value=8), "'column_sizes' must be"),
        (put("shards", 0, "compression", value="gz"), "'compression' must be zstd"),
        (put("shards", 0, "compression", value=["zstd"]), "'compression' must be zstd"),
        (put("shards", 0, "compression", value="zstdpickle"), "'compression' must be zstd"),
        (put(*ZIP, "basename", value="../x.mds"), "no plain file name"),
        (put(*ZIP, "basename", value="/etc/x.mds"), "no plain file name"),
        (put(*ZIP, "basename", value="a/x.mds"), "no plain file name"),
        (put(*ZIP, "basename", value="x.mds\0"), "no plain file name"),
        (put(*ZIP, "basename", value="x.mds\n"), "no plain file name"),
        (put(*ZIP, "basename", value="x.mds" * 100), "no plain file name"),
        (put(*ZIP, "basename", value=".hidden.mds"), "no plain file name"),
        (put(*ZIP, "basename", value="card.json"), "no plain file name"),
        (put(*ZIP, "basename", value=7), "no plain file name"),
        (put(*RAW, "basename", value="..\\x.mds"), "no plain file name"),
        (put(*RAW, "basename", value="../../x.mds"), "no plain file name"),
        (put(*ZIP, "bytes", value=17), "the index says 17"),
        (put(*ZIP, "bytes", value=0), "whole number"),
        (put(*ZIP, "bytes", value=-5), "whole number"),
        (put(*ZIP, "bytes", value=1e3), "whole number"),
        (put(*ZIP, "bytes", value=True), "whole number"),
        (put(*RAW, "bytes", value=1 << 40), "whole number"),
        (put(*RAW, "bytes", value=1 << 29), "decompression bomb"),
        (put(*RAW, "bytes", value="9"), "whole number"),
        (put("shards", 0, "samples", value=-1), "whole number"),
        (put("shards", 0, "samples", value=0), "whole number"),
        (put("shards", 0, "samples", value=10_000), "whole number of 1 to"),
        (put("shards", 0, "samples", value=2**70), "whole number"),
        (put("shards", 0, "samples", value=None), "whole number"),
        (put(*ZIP, "hashes", value={}), "has none of sha1"),
        (put(*ZIP, "hashes", value=["sha1"]), "to strings"),
        (put(*ZIP, "hashes", value={"sha1": 5}), "40 hexadecimal digits"),
        (put(*ZIP, "hashes", "xxh64", value="g" * 16), "16 hexadecimal digits"),
        (put(*RAW, "hashes", value={"sha1": "0" * 40}), "different algorithms"),
        (put(*ZIP, value="x"), "must be an object"),
        (put(*RAW, value=None), "must be an object"),
        (lambda content: content["shards"].append(content["shards"][0]), "more than once"),
        (put("shards", 1, "raw_data", "basename", value="SHARD.00000.mds"), "more than once"),
        (put("shards", 1, "raw_data", "basename", value=FIRST), "more than once"),
    ],
)
def test_a_hostile_index_is_refused(
    copied: Path, edit: Callable[[dict[str, Any]], None], message: str
):
    change(copied, edit)
    with pytest.raises(ValueError, match=message) as error:
        check_index(copied)
    assert str(copied) in str(error.value)


def test_a_repeated_key_is_refused_since_readers_differ_in_which_they_take(copied: Path):
    path = copied / "index.json"
    hostile = '{"column_encodings": ["pkl"], "column_encodings":'
    path.write_text(path.read_text().replace('{"column_encodings":', hostile, 1))
    with pytest.raises(ValueError, match="'column_encodings' stands more than once"):
        check_index(copied)


def test_a_pickle_is_never_opened(copied: Path, tmp_path: Path):
    class Payload:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    replace_stored(copied, pickle.dumps(Payload()))
    change(copied, put("shards", 0, "column_encodings", value=["pkl"] * len(records.COLUMNS)))
    with pytest.raises(ValueError, match="'column_encodings' must be"):
        list(read_records(copied))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", [FIRST, "index.json"])
def test_only_plain_files_of_the_directory_are_opened(copied: Path, tmp_path: Path, name: str):
    path, outside = copied / name, tmp_path / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(ValueError, match="a link that leaves the directory"):
        list(read_records(copied))
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(ValueError, match=str(path)):
        list(read_records(copied))
    path.unlink()
    os.mkfifo(path)  # opening it in the plain way would wait for ever
    with pytest.raises(ValueError, match="no plain file"):
        list(read_records(copied))
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="no plain file"):
        list(read_records(copied))
    path.rmdir()
    outside.rename(copied / "other")
    path.symlink_to("other")
    assert list(read_records(copied)) == RECORDS


def test_a_device_in_place_of_a_shard_is_not_read(copied: Path):
    (copied / FIRST).unlink()
    (copied / FIRST).symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="leaves the directory"):
        check_index(copied)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[" * 100_000, "null", "\x00", "9" * 5000, '{"version": 2}', "\ufeff{}"]
)
def test_a_damaged_index_is_named(copied: Path, text: str):
    (copied / "index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json"):
        check_index(copied)


def test_an_index_that_is_no_text_or_too_large_is_named(copied: Path):
    (copied / "index.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="not readable as JSON"):
        check_index(copied)
    with (copied / "index.json").open("wb") as file:
        file.truncate(1 << 34)
    with pytest.raises(ValueError, match="larger than"):
        check_index(copied)


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


def test_the_hash_algorithm_is_one_that_all_files_have(copied: Path):
    assert hash_algorithm(check_index(copied)) == "xxh64"
    for data in ("raw_data", "zip_data"):
        change(copied, lambda content, data=data: content["shards"][0][data]["hashes"].pop("xxh64"))
    assert hash_algorithm(check_index(copied)) == "sha1"
    assert list(read_records(copied)) == RECORDS
    for data in ("raw_data", "zip_data"):
        change(copied, lambda content, data=data: content["shards"][1][data]["hashes"].pop("sha1"))
    with pytest.raises(ValueError, match="no hash algorithm is common"):
        hash_algorithm(check_index(copied))


def test_reading_writes_nothing(copied: Path):
    before = {path.name: path.stat().st_mtime_ns for path in copied.iterdir()}
    copied.chmod(0o555)
    assert len(list(read_records(copied))) == len(RECORDS)
    copied.chmod(0o755)
    assert {path.name: path.stat().st_mtime_ns for path in copied.iterdir()} == before


@pytest.mark.parametrize(
    "edit",
    [
        put(*ZIP, "hashes", "sha1", value="0" * 40),
        put(*RAW, "hashes", "sha1", value="0" * 40),
        put("shards", 0, "samples", value=1),
        lambda content: content["shards"].reverse(),
        lambda content: content["shards"].pop(),
    ],
)
def test_the_fingerprint_follows_the_content(
    copied: Path, written: Path, edit: Callable[[dict[str, Any]], None]
):
    assert fingerprint(check_index(copied)) == fingerprint(check_index(written))
    change(copied, edit)
    assert fingerprint(check_index(copied)) != fingerprint(check_index(written))
