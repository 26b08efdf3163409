import json
from pathlib import Path

import pytest
from PIL import Image

from ibtrain.data.instructions import templates
from ibtrain.data.prepare import PrepareReport, prepare
from ibtrain.data.records import Answer
from ibtrain.data.shards import check_index, fingerprint, read_records


def test_prepare_writes_what_is_read_back(prepared: Path, toy: Path):
    records = list(read_records(prepared))
    questions = json.loads((toy / "gqa/testdev_balanced_questions.json").read_text())
    assert [record.id for record in records] == list(questions)
    for record, row in zip(records, questions.values(), strict=True):
        assert record.instructions == (f"Question: {row['question']} Short answer:",)
        assert record.answers == (Answer(row["answer"], 1.0),)
        assert record.details["question_type"] == row["types"]["detailed"]
        image = (toy / f"gqa/images/{row['imageId']}.jpg").read_bytes()
        assert record.images == (image,)


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
    kinds = {(record.form, len(record.instructions)) for record in read_records(tmp_path / "1")}
    assert kinds == {
        (form, len(templates(form).templates))
        for form in ("visual_question_answering", "multiple_choice")
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
