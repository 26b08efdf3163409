import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstd
from PIL import Image

from ibtrain.data import shards
from ibtrain.data.instructions import templates
from ibtrain.data.records import Answer, Record
from ibtrain.data.shards import (
    PrepareReport,
    check_index,
    columns_to_record,
    fingerprint,
    hash_algorithm,
    prepare,
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


@pytest.fixture(scope="session")
def prepared(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "gqa"
    prepare("gqa", toy / "gqa", out, progress=False)
    return out


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


def test_prepare_writes_what_is_read_back(prepared: Path, toy: Path):
    records = list(read_records(prepared))
    questions = json.loads((toy / "gqa/testdev_balanced_questions.json").read_text())
    assert [record.id for record in records] == list(questions)
    for record, row in zip(records, questions.values(), strict=True):
        assert record.instructions == (f"Question: {row['question']} Short answer:",)
        assert record.answers == (Answer(row["answer"], 1.0),)
        assert record.details["question_type"] == row["types"]["detailed"]
        assert record.image == (toy / f"gqa/images/{row['imageId']}.jpg").read_bytes()


def test_streaming_reads_the_same_records(prepared: Path, tmp_path: Path):
    from streaming import StreamingDataset

    copy = shutil.copytree(prepared, tmp_path / "gqa")
    dataset = StreamingDataset(local=str(copy), batch_size=1)
    assert [columns_to_record(dataset[index]) for index in range(len(dataset))] == list(
        read_records(prepared)
    )


def test_the_same_request_again_does_nothing(prepared: Path, toy: Path):
    before = {path: path.stat().st_mtime_ns for path in prepared.iterdir()}
    report = prepare("gqa", toy / "gqa", prepared, progress=False)
    assert report == PrepareReport("gqa", "testdev", 40, {}, 0, 1)
    assert {path: path.stat().st_mtime_ns for path in prepared.iterdir()} == before
    with pytest.raises(ValueError, match="other split, sources"):
        prepare("gqa", toy / "gqa", prepared, split="challenge", progress=False)


def test_the_bytes_do_not_depend_on_the_number_of_workers(toy: Path, tmp_path: Path):
    for workers in (1, 2):
        prepare("aokvqa", toy / "aokvqa", tmp_path / str(workers), workers=workers, progress=False)
    one, two = (check_index(tmp_path / str(workers)) for workers in (1, 2))
    assert fingerprint(one) == fingerprint(two) and one.samples == 120
    kinds = {(record.task, len(record.instructions)) for record in read_records(tmp_path / "1")}
    assert kinds == {
        (task, len(templates(task).templates))
        for task in ("visual_question_answering", "multiple_choice")
    }


def conversations(raw: Path, count: int, bad: int) -> Path:
    """A raw directory with `count` conversations, the first `bad` of which have no image."""
    (raw / "images").mkdir(parents=True)
    Image.new("RGB", (20, 12)).save(raw / "images/a.jpg")
    (raw / "images/broken.jpg").write_bytes(b"no image")
    rows = [
        {
            "id": str(index),
            "image": ("broken.jpg" if index % 2 else "gone.jpg") if index < bad else "a.jpg",
            "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}],
        }
        for index in range(count)
    ]
    rows.append({**rows[-1]})
    (raw / "conversation_58k.json").write_text(json.dumps(rows))
    return raw


def test_bad_annotations_are_set_aside_within_the_budget(tmp_path: Path):
    raw = conversations(tmp_path / "raw", count=10, bad=2)
    report = prepare("llava_conversation", raw, tmp_path / "out", budget=0.2, progress=False)
    assert report == PrepareReport(
        "llava_conversation", "train", 8, {"repeated id": 1}, quarantined=2, shards=1
    )
    lines = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").open()]
    assert [line["id"] for line in lines] == ["0", "1-0"]
    assert "gone.jpg" in lines[0]["reason"] and "not a readable image" in lines[1]["reason"]
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert card["report"]["written"] == 8 and set(card["request"]["sources"]) == {
        "conversation_58k.json"
    }


def test_over_the_budget_nothing_is_left_but_the_reasons(tmp_path: Path):
    raw = conversations(tmp_path / "raw", count=10, bad=2)
    with pytest.raises(ValueError, match=r"2 of 11 annotations are bad.*budget of 1.0%"):
        prepare("llava_conversation", raw, tmp_path / "out", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.quarantine.jsonl", "raw"]


def test_another_directory_is_not_touched(tmp_path: Path, toy: Path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="not empty and holds no shards"):
        prepare("gqa", toy / "gqa", tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


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
