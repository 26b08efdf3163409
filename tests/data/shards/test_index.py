"""An index is checked before anything that it names is opened."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ibtrain.data.shards import records
from ibtrain.data.shards.records import (
    check_index,
    fingerprint,
    hash_algorithm,
    read_index,
    read_records,
)
from tests.data.shard_directories import (
    put,
)
from tests.data.shards.samples import FIRST, RAW, RECORDS, ZIP, change


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
