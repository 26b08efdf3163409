import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstd

from ibtrain.data import shards
from ibtrain.data.records import Answer, Record
from ibtrain.data.shards import (
    check_index,
    columns_to_record,
    fingerprint,
    hash_algorithm,
    read_records,
    record_to_columns,
    verify_shards,
)

RECORD = Record(
    dataset="vqav2",
    task="visual_question_answering",
    id="10",
    image=b"\xff\xd8",
    instructions=("a", "ü"),
    answers=(Answer("net", 6.0), Answer("mesh", 3.0)),
    details={"question_type": "what"},
)


@pytest.fixture
def copied(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "gqa"))


def change(directory: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = directory / "index.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_columns_and_record_are_inverse():
    assert columns_to_record(record_to_columns(RECORD)) == RECORD
    assert set(record_to_columns(RECORD)) == set(shards.COLUMNS)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("image", "text"),
        ("id", 5),
        ("instructions", []),
        ("instructions", [1]),
        ("details", []),
        ("answers", []),
        ("answers", [{"text": "a"}]),
        ("answers", [{"text": "a", "weight": 0}]),
        ("answers", [{"text": "a", "weight": float("nan")}]),
        ("answers", {"text": "a"}),
    ],
)
def test_other_columns_are_refused_by_name(column: str, value: object):
    with pytest.raises(ValueError, match=f"column '{column}'"):
        columns_to_record({**record_to_columns(RECORD), column: value})


def test_streaming_reads_the_same_records(prepared: Path, tmp_path: Path):
    from streaming import StreamingDataset

    copy = shutil.copytree(prepared, tmp_path / "gqa")
    dataset = StreamingDataset(local=str(copy), batch_size=1)
    assert [columns_to_record(dataset[index]) for index in range(len(dataset))] == list(
        read_records(prepared)
    )


def test_what_is_missing_is_named_with_the_remedy(copied: Path, tmp_path: Path):
    for kind in (ValueError, FileNotFoundError):
        with pytest.raises(kind, match="none is not there; run `ibtrain data prepare"):
            check_index(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no index"):
        check_index(tmp_path / "empty")
    (copied / "shard.00000.mds.zstd").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks the shard shard\.00000"):
        check_index(copied)


def _set(*path: Any, value: object) -> Callable[[dict[str, Any]], None]:
    def edit(content: dict[str, Any]) -> None:
        place: Any = content
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_set("version", value=1), "version 2"),
        (_set("shards", value=[]), "'shards' must be a list"),
        (_set("shards", value={"0": 1}), "'shards' must be a list"),
        (_set("shards", 0, value=5), "must be an object"),
        (_set("shards", 0, "format", value="json"), "'format' must be mds"),
        (_set("shards", 0, "column_encodings", 4, value="pkl"), "'column_encodings' must be"),
        (_set("shards", 0, "column_names", 0, value="answer"), "'column_names' must be"),
        (_set("shards", 0, "column_sizes", 0, value=8), "'column_sizes' must be"),
        (_set("shards", 0, "compression", value="gz"), "'compression' must be zstd"),
        (_set("shards", 0, "zip_data", "basename", value="../x"), "no plain file name"),
        (_set("shards", 0, "zip_data", "basename", value="/etc/passwd"), "no plain file name"),
        (_set("shards", 0, "raw_data", "basename", value="..\\x"), "no plain file name"),
        (_set("shards", 0, "zip_data", "basename", value=".hidden"), "no plain file name"),
        (_set("shards", 0, "zip_data", "basename", value=7), "no plain file name"),
        (_set("shards", 0, "zip_data", "bytes", value=17), "the index says 17"),
        (_set("shards", 0, "zip_data", "bytes", value=True), "whole number"),
        (_set("shards", 0, "raw_data", "bytes", value=1 << 40), "whole number"),
        (_set("shards", 0, "raw_data", "bytes", value="9"), "whole number"),
        (_set("shards", 0, "samples", value=-1), "whole number"),
        (_set("shards", 0, "zip_data", "hashes", value={}), "has none of sha1"),
        (_set("shards", 0, "zip_data", "hashes", value={"sha1": 5}), "to strings"),
        (_set("shards", 0, "zip_data", value="x"), "must be an object"),
        (lambda content: content["shards"].append(content["shards"][0]), "more than once"),
    ],
)
def test_a_hostile_index_is_refused(
    copied: Path, edit: Callable[[dict[str, Any]], None], message: str
):
    change(copied, edit)
    with pytest.raises(ValueError, match=message) as error:
        check_index(copied)
    assert str(copied) in str(error.value)


def test_a_pickle_is_never_opened(copied: Path, tmp_path: Path):
    class Payload:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    (copied / "shard.00000.mds.zstd").write_bytes(pickle.dumps(Payload()))
    change(copied, _set("shards", 0, "column_encodings", value=["pkl"] * 7))
    with pytest.raises(ValueError, match="'column_encodings' must be"):
        list(read_records(copied))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "null", "\x00"])
def test_a_damaged_index_is_named(copied: Path, text: str):
    (copied / "index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json"):
        check_index(copied)


def replace_shard(directory: Path, data: bytes) -> None:
    (directory / "shard.00000.mds.zstd").write_bytes(data)
    change(directory, _set("shards", 0, "zip_data", "bytes", value=len(data)))


def test_a_shard_that_unpacks_to_more_is_refused(copied: Path):
    good = (copied / "shard.00000.mds.zstd").read_bytes()
    replace_shard(copied, zstd.compress(bytes(1 << 24)))
    with pytest.raises(ValueError, match="would unpack to 16777216 bytes"):
        list(read_records(copied))
    replace_shard(copied, good + zstd.compress(bytes(1 << 24)))
    with pytest.raises(ValueError, match="after the end"):
        list(read_records(copied))
    replace_shard(copied, good[:-100])
    with pytest.raises(ValueError, match="ends early"):
        list(read_records(copied))
    replace_shard(copied, b"PK\x03\x04" * 20)
    with pytest.raises(ValueError, match="no zstd data"):
        list(read_records(copied))


def test_every_flipped_bit_is_found_by_verify(copied: Path):
    path = copied / "shard.00000.mds.zstd"
    data = bytearray(path.read_bytes())
    assert verify_shards(check_index(copied)) == []
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (bad,) = verify_shards(check_index(copied))
    assert bad.shard == path.name and bad.reason == "sha1, xxh64 differs from the index"


def test_flipped_bytes_within_a_shard_give_records_or_a_named_error(copied: Path):
    raw = bytearray(zstd.decompress((copied / "shard.00000.mds.zstd").read_bytes()))
    for position in range(0, 2000, 7):
        damaged = bytearray(raw)
        damaged[position] ^= 0xA5
        replace_shard(copied, zstd.compress(bytes(damaged)))
        try:
            assert all(isinstance(record, Record) for record in read_records(copied))
        except ValueError as error:
            assert "shard.00000" in str(error)


def test_the_hash_algorithm_is_one_that_all_files_have(copied: Path):
    assert hash_algorithm(check_index(copied)) == "xxh64"
    for data in ("raw_data", "zip_data"):
        change(copied, lambda content, data=data: content["shards"][0][data]["hashes"].pop("xxh64"))
    assert hash_algorithm(check_index(copied)) == "sha1"
    change(copied, _set("shards", 0, "raw_data", "hashes", value={"xxh64": "0"}))
    with pytest.raises(ValueError, match="different algorithms"):
        check_index(copied)


def test_reading_writes_nothing(copied: Path):
    (copied / "shard.00000.mds").unlink(missing_ok=True)
    before = sorted(path.name for path in copied.iterdir())
    assert len(list(read_records(copied))) == 40
    assert sorted(path.name for path in copied.iterdir()) == before


def test_the_fingerprint_follows_the_content(copied: Path, prepared: Path):
    assert fingerprint(check_index(copied)) == fingerprint(check_index(prepared))
    change(copied, _set("shards", 0, "zip_data", "hashes", "sha1", value="0" * 40))
    assert fingerprint(check_index(copied)) != fingerprint(check_index(prepared))
