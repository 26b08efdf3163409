import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ibtrain.data.instructions import templates
from ibtrain.data.preparation import survey
from ibtrain.data.preparation.prepare import PrepareReport, prepare
from ibtrain.data.records import Answer
from ibtrain.data.shards.records import (
    COLUMNS,
    COMPRESSION,
    HASHES,
    read_records,
    record_to_columns,
)
from ibtrain.data.shards.verify import verify
from ibtrain.data.shards.writer import ShardWriter, encode_sample
from ibtrain.files import BusyError, locked
from tests.data.preparation.conversions import contents, conversations, start, whole


def test_prepare_writes_what_is_read_back(prepared: Path, toy: Path):
    records = list(read_records(prepared))
    questions = json.loads((toy / "gqa/testdev_balanced_questions.json").read_text())
    assert {record.id for record in records} == set(questions) and len(records) == len(questions)
    for record in records:
        row = questions[record.id]
        assert record.instructions == (f"Question: {row['question']} Short answer:",)
        assert record.plain == row["question"]
        assert record.answers == (Answer(row["answer"], 1.0),)
        assert record.details["question_type"] == row["types"]["detailed"]
        assert record.images == ((toy / f"gqa/images/{row['imageId']}.jpg").read_bytes(),)


def test_the_same_request_again_does_nothing(prepared: Path, toy: Path):
    before = {path: path.stat().st_mtime_ns for path in prepared.iterdir()}
    report = prepare("gqa", toy / "gqa", prepared, progress=False)
    assert (report.dataset, report.split, report.written) == ("gqa", "testdev", report.written)
    assert report == PrepareReport("gqa", "testdev", report.written, {}, 0, 1)
    assert {path: path.stat().st_mtime_ns for path in prepared.iterdir()} == before
    with pytest.raises(ValueError, match="written from other short_side; name another"):
        prepare("gqa", toy / "gqa", prepared, short_side=200, progress=False)


def test_every_form_of_a_dataset_is_rendered(toy: Path, tmp_path: Path):
    prepare("aokvqa", toy / "aokvqa", tmp_path / "out", progress=False)
    kinds = {(record.form, len(record.instructions)) for record in read_records(tmp_path / "out")}
    assert {form for form, _ in kinds} == {"visual_question_answering", "multiple_choice"}
    assert all(count >= len(templates(form).templates) for form, count in kinds)


def test_streaming_reads_the_same_shards(tmp_path: Path, small_chunks: None):
    from streaming import StreamingDataset

    raw = conversations(tmp_path / "raw", count=20, images=7)
    assert whole(raw, tmp_path / "out").shards > 1
    dataset = StreamingDataset(local=str(tmp_path / "out"), shuffle=False, batch_size=1)
    found = [(row["id"], row["image"], row["answers"]) for row in dataset]
    assert found == [
        (record.id, record.images[0], [{"text": record.answers[0].text, "weight": 1.0}])
        for record in read_records(tmp_path / "out")
    ]


def test_shards_equal_those_that_streaming_writes(tmp_path: Path):
    from streaming import MDSWriter

    raw = conversations(tmp_path / "raw", count=30, images=7, size=(300, 200))
    whole(raw, tmp_path / "out")
    records = list(read_records(tmp_path / "out"))
    ours = ShardWriter(tmp_path / "ours", shard_bytes=200_000)
    (tmp_path / "ours").mkdir()
    with MDSWriter(
        out=str(tmp_path / "theirs"),
        columns=COLUMNS,
        compression=COMPRESSION,
        hashes=list(HASHES),
        size_limit=200_000,
    ) as theirs:
        for record in records:
            theirs.write(record_to_columns(record))
            ours.write(encode_sample(record_to_columns(record)))
    ours.finish()
    expected = contents(tmp_path / "theirs")
    assert json.loads(expected.pop("index.json"))["shards"] == ours.entries
    assert contents(tmp_path / "ours") == expected and len(expected) > 3


def test_the_bytes_depend_neither_on_workers_nor_on_portions(tmp_path: Path, small_chunks: None):
    raw = conversations(tmp_path / "raw", count=90, bad=6, images=30)
    rows = json.loads((raw / "conversation_58k.json").read_text())
    for number, row in enumerate(rows[20:30]):
        rows.append(row | {"image": f"{number + 3}.jpg"})  # the same id, another image
    (raw / "conversation_58k.json").write_text(json.dumps(rows))
    for workers in (1, 2):
        report = whole(raw, tmp_path / str(workers), workers=workers, budget=0.1)
        assert (report.written, report.quarantined, report.complete) == (94, 6, True)
        assert (report.renamed, report.dropped) == (10, {"duplicate": 1})
    one = contents(tmp_path / "1")
    assert contents(tmp_path / "2") == one and len(one) > 8
    chunks = json.loads(one["card.json"])["parts"]
    assert len(chunks) == 13 and sum(chunk["records"] for chunk in chunks) == 94
    reports = [whole(raw, tmp_path / "3", portion=(index, 3), budget=0.1) for index in (2, 0, 1)]
    assert [report.complete for report in reports] == [False, False, True]
    assert reports[2].written == 94 and sum(report.written for report in reports[:2]) < 94
    assert contents(tmp_path / "3") == one
    assert whole(raw, tmp_path / "3", portion=(3, 3), budget=0.1) == reports[2]


@pytest.mark.timeout(900)
def test_portions_in_processes_side_by_side_equal_one_run(tmp_path: Path):
    raw = conversations(tmp_path / "raw", count=60, images=60, size=(300, 200))
    processes = [
        start(tmp_path, raw, tmp_path / "parts", "--part", f"{index}/3") for index in (1, 2, 3)
    ]
    outputs = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    documents = [json.loads(out) for out, _ in outputs]
    assert sum(document["complete"] for document in documents) >= 1
    assert {"written", "dropped", "quarantined", "shards"} <= set(documents[0])
    process = start(tmp_path, raw, tmp_path / "one")
    assert process.wait(timeout=600) == 0
    assert contents(tmp_path / "parts") == contents(tmp_path / "one")
    assert verify(tmp_path / "one", progress=False).records == 60


def test_ids_are_compared_over_the_whole_split(tmp_path: Path, small_chunks: None):
    raw = conversations(tmp_path / "raw", count=50, images=10)
    rows = json.loads((raw / "conversation_58k.json").read_text())
    for number, row in enumerate(rows[:25]):
        rows.append(row | {"image": f"{(number + 3) % 10}.jpg"})  # the same id, another image
    (raw / "conversation_58k.json").write_text(json.dumps(rows))
    report = whole(raw, tmp_path / "out")
    assert (report.written, report.dropped, report.renamed) == (75, {"duplicate": 1}, 25)
    ids = [record.id for record in read_records(tmp_path / "out")]
    assert sorted(ids) == sorted(
        [f"{number}-0" for number in range(50)] + [f"{number}-0#2" for number in range(25)]
    )


def test_hashes_seen_are_told_from_new_ones():
    generator = np.random.default_rng(1)
    seen = survey._Seen()
    known: set[int] = set()
    for _ in range(40):
        keys = generator.integers(0, 3000, 97, np.uint64)
        expected = []
        for key in keys.tolist():
            expected.append(key not in known)
            known.add(key)
        assert seen.add(keys) == expected


def test_more_parts_than_buckets_hold_every_example_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(survey, "CHUNK_EXAMPLES", 1)
    monkeypatch.setattr(survey, "_BUCKETS", 4)
    raw = conversations(tmp_path / "raw", count=30, images=30)
    report = whole(raw, tmp_path / "out")
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert report.written == 30 and len(card["parts"]) == 32
    ids = sorted(int(record.id.split("-")[0]) for record in read_records(tmp_path / "out"))
    assert ids == list(range(30))


def test_a_second_process_is_told_that_it_is_busy(tmp_path: Path):
    raw = conversations(tmp_path / "raw", count=4)
    (tmp_path / "out/.parts").mkdir(parents=True)
    with (
        locked(tmp_path / "out/.parts/run.lock", shared=True),
        pytest.raises(BusyError, match=r"another process is writing to .*out; wait until it has"),
    ):
        whole(raw, tmp_path / "out")
    assert whole(raw, tmp_path / "out").written == 4


def test_an_unfinished_conversion_of_another_request_is_refused(tmp_path: Path, small_chunks: None):
    raw = conversations(tmp_path / "raw", count=40, images=20)
    assert not whole(raw, tmp_path / "out", portion=(1, 2)).complete
    with pytest.raises(ValueError, match="an unfinished conversion written from other short_side"):
        whole(raw, tmp_path / "out", portion=(2, 2), short_side=100)
    assert whole(raw, tmp_path / "out", portion=(2, 2)).written == 40


def test_another_directory_is_not_touched(tmp_path: Path, toy: Path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="not empty and holds no shards"):
        prepare("gqa", toy / "gqa", tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"workers": 0}, "0 workers"),
        ({"portion": (4, 3)}, r"part 4/3: give i/n with i from 1 to n"),
        ({"budget": 1.5}, "a share of 0 to 1"),
        ({"short_side": 3}, "16 to 8192"),
        ({"frames": 0}, "at least 1"),
    ],
)
def test_a_wrong_request_is_refused(tmp_path: Path, options: dict[str, Any], complaint: str):
    raw = conversations(tmp_path / "raw", count=4)
    with pytest.raises(ValueError, match=complaint):
        whole(raw, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
