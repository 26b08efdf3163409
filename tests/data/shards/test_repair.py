"""Repair takes what an index and a card vouch for, and nothing else."""

import os
import shutil
from pathlib import Path

import pytest

from ibtrain.data.shards import repair as repair_module
from ibtrain.data.shards.records import read_records
from ibtrain.data.shards.remote import FetchError
from ibtrain.data.shards.repair import RepairReport, repair
from ibtrain.data.shards.verify import verify
from tests.data.shard_directories import (
    change_json,
    put,
    record,
)
from tests.data.shards.samples import FIRST, RECORDS, SECOND, THIRD, flip, write


def repaired(directory: Path, source: Path | str) -> RepairReport:
    before = verify(directory, progress=False)
    return repair(directory, str(source), before, progress=False)


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
