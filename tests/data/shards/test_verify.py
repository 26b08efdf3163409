import io
import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ibtrain.cli import main
from ibtrain.data.shards import repair as repair_module
from ibtrain.data.shards import verify as verify_module
from ibtrain.data.shards.records import read_records
from ibtrain.data.shards.remote import FetchError
from ibtrain.data.shards.repair import RepairReport, repair
from ibtrain.data.shards.verify import Problem, verify
from tests.data.shard_directories import (
    change_json,
    jpeg,
    put,
    record,
    replace_stored,
    write_card,
    write_shards,
)

RECORDS = [record(number) for number in range(60)]
FIRST, SECOND, THIRD = (f"shard.0000{number}.mds.zstd" for number in range(3))


def write(directory: Path, records: list[Any], **options: Any) -> Path:
    write_shards(directory, records, **options)
    write_card(directory)
    return directory


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty records in four compressed shards, with their card."""
    return write(tmp_path_factory.mktemp("shards") / "vqav2", RECORDS, shard_bytes=16_000)


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "vqav2"))


def problems(directory: Path, workers: int = 1) -> list[Problem]:
    return list(verify(directory, workers=workers, progress=False).bad)


def flip(path: Path, position: int = 100) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def repaired(directory: Path, source: Path | str) -> RepairReport:
    before = verify(directory, progress=False)
    return repair(directory, str(source), before, progress=False)


def test_good_shards_have_nothing_bad(copied: Path):
    before = {path: path.stat().st_mtime_ns for path in copied.iterdir()}
    report = verify(copied, progress=False)
    assert (report.records, report.bad, report.leftovers) == (60, (), ())
    assert {path: path.stat().st_mtime_ns for path in copied.iterdir()} == before


def test_shards_that_are_not_compressed_are_verified_too(tmp_path: Path):
    directory = write(tmp_path / "raw", RECORDS, compression=None, shard_bytes=16_000)
    assert problems(directory) == []
    flip(directory / "shard.00001.mds")
    assert problems(directory) == [
        Problem("shard.00001.mds", None, "sha1, xxh64 differs from the index")
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_everything_bad_is_listed_not_only_the_first(copied: Path, workers: int):
    flip(copied / FIRST)
    (copied / SECOND).unlink()
    (copied / THIRD).write_bytes((copied / THIRD).read_bytes()[:-1])
    (copied / "quarantine.jsonl").write_text("{}\n{}\n")
    size = (copied / THIRD).stat().st_size
    report = verify(copied, workers=workers, progress=False)
    assert [(problem.shard, problem.index) for problem in report.bad] == [
        (FIRST, None),
        (SECOND, None),
        (THIRD, None),
        ("quarantine.jsonl", None),
    ]
    reasons = [problem.reason for problem in report.bad]
    assert reasons[0] == "sha1, xxh64 differs from the index"
    assert f"{copied} lacks the file {SECOND}" in reasons[1]
    assert f"{size} bytes, the index says {size + 1}" in reasons[2]
    assert reasons[3] == "2 lines, the card speaks of 0 bad records"
    assert report.records == 60 - sum(s.shard.samples for s in report.shards if not s.intact) > 0


def bomb() -> bytes:
    """A PNG of 40000 x 40000 pixels in some kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + check

    side = (40_000).to_bytes(4, "big")
    head = chunk(b"IHDR", side + side + b"\x08\x02\x00\x00\x00")
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1 << 20), 9))


def gif() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "GIF")
    return buffer.getvalue()


def test_every_image_is_decoded(tmp_path: Path):
    whole = jpeg(1, (300, 200))
    records = [
        record(0),
        record(1, images=(jpeg(1), whole[: len(whole) // 2])),
        record(2, images=(bomb(),)),
        record(3, images=(b"no image",)),
        record(4, images=(gif(),)),
        record(5, images=()),
    ]
    found = problems(write(tmp_path / "images", records))
    assert [problem.index for problem in found] == [1, 2, 3, 4]
    assert "image 2 of 2 is not readable: image file is truncated" in found[0].reason
    assert "40000 x 40000 pixels" in found[1].reason or "bomb" in found[1].reason
    assert all("image 1 of 1 is not readable" in problem.reason for problem in found[2:])


def test_a_record_that_does_not_decode_is_named_beside_the_good_ones(copied: Path):
    import zstandard

    from tests.data.shard_directories import replace_raw

    raw = zstandard.decompress((copied / FIRST).read_bytes())
    replace_raw(copied, raw.replace(b'"weight": 6.0', b'"weight": -1.', 1))
    write_card(copied)
    (problem,) = problems(copied)
    assert (problem.shard, problem.index) == (FIRST, 0) and "'answers'" in problem.reason
    assert verify(copied, progress=False).records == 59


def test_many_bad_records_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verify_module, "_LISTED", 3)
    records = [record(number, images=(b"x",)) for number in range(10)]
    found = problems(write(tmp_path / "bad", records))
    assert [problem.index for problem in found] == [0, 1, 2, None]
    assert found[3].reason == "7 more of its records are bad"


def test_ids_that_stand_twice_are_named(tmp_path: Path):
    records = [record(number) for number in range(40)]
    records[30] = record(7)
    records[39] = record(7)
    directory = write(tmp_path / "twice", records, shard_bytes=16_000)
    per_shard = [shard.shard.samples for shard in verify(directory, progress=False).shards]
    assert per_shard[0] > 7 and len(per_shard) == 3 and sum(per_shard[:2]) < 39
    assert problems(directory) == [
        Problem(SECOND, 30 - per_shard[0], f"its id is that of record 7 of {FIRST}, too"),
        Problem(
            THIRD,
            39 - sum(per_shard[:2]),
            f"its id is that of record {30 - per_shard[0]} of {SECOND}, too",
        ),
    ]


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (put("report", "written", value=61), "speaks of 61 records, the index of 60"),
        (put("report", "shards", value=3), "speaks of 3 shards, the index of 4"),
        (put("bytes", "raw", value=3), "its sizes are {'stored': "),
        (put("bytes", value=None), "its sizes are None"),
        (put("fingerprint", value="0"), "fingerprint is that of another index"),
        (put("fingerprint", value=5), "'fingerprint' must be a string"),
        (put("report", "written", value="60"), "report.written must be a whole number"),
        (put("report", value=[]), "'report' is missing"),
    ],
)
def test_the_card_is_held_against_the_index(
    copied: Path, edit: Callable[[dict[str, Any]], None], reason: str
):
    change_json(copied / "card.json", edit)
    (problem,) = problems(copied)
    assert problem.shard == "card.json" and reason in problem.reason


def test_records_of_another_dataset_are_bad(tmp_path: Path):
    records = [record(0), record(1, dataset="gqa"), record(2, dataset="vsr")]
    (problem,) = problems(write(tmp_path / "mixed", records))
    assert problem.reason == "holds records of gqa, vsr, the card is of vqav2"
    change_json(tmp_path / "mixed/card.json", put("report", "dataset", value=None))
    (problem,) = problems(tmp_path / "mixed")
    assert "report.dataset must be a string" in problem.reason


def test_a_missing_or_damaged_card_is_bad(copied: Path):
    (copied / "card.json").write_text("{")
    (problem,) = problems(copied)
    assert problem.shard == "card.json" and "not readable as JSON" in problem.reason
    (copied / "card.json").unlink()
    (problem,) = problems(copied)
    assert problem.shard == "card.json" and "lacks the file card.json" in problem.reason


def test_leftovers_are_named_and_do_no_harm(copied: Path):
    (copied / "shard.00000.mds").write_bytes(b"unpacked by another program")
    (copied / ".lock").write_bytes(b"")
    report = verify(copied, progress=False)
    assert report.leftovers == (".lock", "shard.00000.mds") and report.bad == ()


def test_bad_entries_of_an_index_do_not_hide_the_good_shards(copied: Path):
    change_json(copied / "index.json", put("shards", 1, "column_encodings", 0, value="pkl"))
    change_json(copied / "index.json", put("shards", 2, "raw_data", "basename", value="../x.mds"))
    report = verify(copied, progress=False)
    assert [problem.shard for problem in report.bad] == ["index.json", "index.json"]
    assert "shards[1]: 'column_encodings'" in report.bad[0].reason
    assert "shards[2]: raw_data: '../x.mds' is no plain file name" in report.bad[1].reason
    assert report.records == sum(shard.shard.samples for shard in report.shards) > 0


def test_what_is_no_shard_directory_is_a_wrong_request(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for name in ("none", "empty"):
        with pytest.raises(FileNotFoundError, match=name):
            verify(tmp_path / name, progress=False)


def test_repair_replaces_only_what_differs(copied: Path, written: Path):
    flip(copied / FIRST)
    (copied / SECOND).unlink()
    (copied / THIRD).unlink()
    (copied / THIRD).symlink_to("/dev/zero")
    untouched = {
        path: path.stat().st_mtime_ns
        for path in copied.iterdir()
        if path.name not in (FIRST, SECOND, THIRD)
    }
    report = repaired(copied, written)
    assert report.replaced == (FIRST, SECOND, THIRD) and report.refused == ()
    assert report.after.bad == () and report.after.leftovers == ()
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched
    assert list(read_records(copied)) == RECORDS


def test_an_address_repairs_as_a_directory_does(
    copied: Path, written: Path, monkeypatch: pytest.MonkeyPatch
):
    flip(copied / FIRST)
    assert repaired(copied, f"file://{written}").replaced == (FIRST,)
    fetched: list[str] = []

    def fetch(remote: str, local: Path) -> None:
        fetched.append(remote)
        if remote.endswith(SECOND):
            raise FetchError(f"{remote} cannot be fetched: no such key")
        shutil.copyfile(written / remote.removeprefix("s3://bucket/vqav2/"), local)

    monkeypatch.setattr(repair_module, "fetch_file", fetch)
    flip(copied / FIRST)
    flip(copied / SECOND)
    report = repaired(copied, "s3://bucket/vqav2/")
    assert fetched == [f"s3://bucket/vqav2/{name}" for name in (FIRST, SECOND)]
    assert report.replaced == (FIRST,) and "no such key" in report.refused[0]
    (copied / "card.json").unlink()
    assert repaired(copied, "s3://bucket/vqav2").replaced == ("card.json",)


@pytest.mark.parametrize("name", ["index.json", "card.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_an_index_or_a_card_is_repaired_where_the_other_names_it(
    copied: Path, written: Path, name: str, damage: str
):
    path = copied / name
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif name == "index.json":
        change_json(path, put("shards", 0, "samples", value=3))
    else:
        change_json(path, put("fingerprint", value="0" * 64))
    flip(copied / FIRST)
    report = repaired(copied, written)
    assert report.replaced == (name, FIRST) and report.refused == ()
    assert report.after.bad == () and list(read_records(copied)) == RECORDS


def test_what_cannot_be_told_is_not_repaired(copied: Path, written: Path, tmp_path: Path):
    other = write(tmp_path / "other", [record(number) for number in range(100, 130)])
    (copied / "index.json").write_text("{")
    before = (copied / "card.json").read_bytes()
    report = repaired(copied, other)
    assert report.replaced == () and "which data this was cannot be told" in report.refused[0]
    (copied / "card.json").write_text("{")
    report = repaired(copied, written)
    assert report.replaced == () and "which data this was cannot be told" in report.refused[0]
    assert [problem.shard for problem in report.after.bad] == ["index.json", "card.json"]
    (copied / "card.json").write_bytes(before)
    assert repaired(copied, written).replaced == ("index.json",)


def test_a_hostile_source_gives_nothing(copied: Path, written: Path, tmp_path: Path):
    source = Path(shutil.copytree(written, tmp_path / "source"))
    secret = tmp_path / "secret"
    secret.write_bytes((written / FIRST).read_bytes())
    (source / FIRST).unlink()
    (source / FIRST).symlink_to(secret)
    (source / SECOND).unlink()
    os.mkfifo(source / SECOND)
    with (source / THIRD).open("wb") as file:
        file.truncate(1 << 40)
    for name in (FIRST, SECOND, THIRD):
        flip(copied / name)
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    report = repaired(copied, source)
    assert report.replaced == () and len(report.refused) == 3
    assert "leaves the directory" in report.refused[0]
    assert "no plain file" in report.refused[1]
    assert "larger than" in report.refused[2]
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


def test_a_hostile_index_of_a_source_is_refused(copied: Path, written: Path, tmp_path: Path):
    source = Path(shutil.copytree(written, tmp_path / "source"))
    change_json(source / "index.json", put("shards", 0, "column_encodings", 0, value="pkl"))
    (copied / "index.json").unlink()
    report = repaired(copied, source)
    assert report.replaced == () and "'column_encodings' must be" in report.refused[0]
    assert not (copied / "index.json").exists()


def test_bad_records_of_an_intact_file_are_not_looked_for_elsewhere(tmp_path: Path):
    directory = write(tmp_path / "bad", [record(0), record(1, images=(b"x",))])
    report = repaired(directory, directory)
    assert report.replaced == () and "prepare the dataset again" in report.refused[0]


def test_a_full_disk_leaves_the_old_file(
    copied: Path, written: Path, monkeypatch: pytest.MonkeyPatch
):
    flip(copied / FIRST)
    before = (copied / FIRST).read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        repaired(copied, written)
    assert (copied / FIRST).read_bytes() == before
    assert not list(copied.glob(".repair-*"))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any]:
    code = main(["data", "verify", "--json", *map(str, arguments)])
    output = capsys.readouterr().out
    return code, json.loads(output) if output else None


def test_the_verb_tells_all_and_repairs(
    copied: Path, written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    good = {
        "records": 60,
        "bad": [],
        "leftovers": [],
        "rebuilt": False,
        "replaced": [],
        "not_replaced": [],
    }
    assert run(capsys, copied) == (0, good)
    flip(copied / SECOND)
    code, document = run(capsys, copied, "--workers", 2)
    assert code == 1 and document["bad"] == [
        {"shard": SECOND, "index": None, "reason": "sha1, xxh64 differs from the index"}
    ]
    assert run(capsys, copied, "--repair-from", tmp_path / "none") == (2, None)
    assert run(capsys, copied, "--repair-from", written) == (0, good | {"replaced": [SECOND]})
    assert run(capsys, tmp_path / "none") == (2, None)


def test_a_replaced_stored_file_with_a_fitting_index_is_told_by_the_card(
    copied: Path, written: Path
):
    replace_stored(copied, (written / SECOND).read_bytes(), shard=0)
    found = problems(copied)
    assert {problem.shard for problem in found} >= {FIRST, "card.json"}
