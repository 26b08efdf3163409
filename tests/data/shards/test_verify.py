import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ibtrain.cli import main
from ibtrain.data.shards import verify as verify_module
from ibtrain.data.shards.verify import Problem, verify
from tests.data.shard_directories import (
    change_json,
    jpeg,
    put,
    record,
    replace_stored,
    write_card,
)
from tests.data.shards.samples import FIRST, RECORDS, SECOND, THIRD, flip, write


def problems(directory: Path, workers: int = 1) -> list[Problem]:
    return list(verify(directory, workers=workers, progress=False).bad)


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
