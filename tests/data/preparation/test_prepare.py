import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ibtrain.data.instructions import templates
from ibtrain.data.preparation import conversion, merging, survey
from ibtrain.data.preparation.prepare import OverBudgetError, PrepareReport, prepare
from ibtrain.data.records import Answer
from ibtrain.data.shards.records import (
    COLUMNS,
    COMPRESSION,
    HASHES,
    check_index,
    fingerprint,
    read_records,
    record_to_columns,
)
from ibtrain.data.shards.verify import verify
from ibtrain.data.shards.writer import ShardWriter, encode_sample
from ibtrain.files import BusyError, locked

# The same as the command line does, with parts small enough for a test.
CONVERT = """
import sys
from pathlib import Path
import ibtrain.data.preparation.survey as survey
survey.PART_EXAMPLES = 8
from ibtrain.cli import main
if __name__ == "__main__":
    sys.exit(main(["data", "prepare", "llava_conversation", *sys.argv[1:]]))
"""


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "PART_EXAMPLES", 8)


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


def conversations(
    raw: Path,
    count: int,
    bad: int = 0,
    images: int = 1,
    size: tuple[int, int] = (20, 12),
) -> Path:
    """A raw directory with `count` conversations, the first `bad` of which have no good image.

    The others take turns on `images` images. The last one is there twice.
    """
    (raw / "images").mkdir(parents=True)
    levels = np.random.default_rng(0).integers(0, 255, (images, size[1], size[0], 3), np.uint8)
    for number in range(images):
        Image.fromarray(levels[number]).save(raw / f"images/{number}.jpg")
    (raw / "images/broken.jpg").write_bytes(b"no image")
    rows = [
        {
            "id": str(index),
            "image": ("broken.jpg" if index % 2 else "gone.jpg")
            if index < bad
            else f"{index % images}.jpg",
            "conversations": [
                {"from": "human", "value": f"Question {index}"},
                {"from": "gpt", "value": "A" * (index + 1)},
            ],
        }
        for index in range(count)
    ]
    rows.append({**rows[-1]})
    (raw / "conversation_58k.json").write_text(json.dumps(rows))
    return raw


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def whole(raw: Path, out: Path, **options: Any) -> PrepareReport:
    return prepare("llava_conversation", raw, out, progress=False, **options)


def test_bad_annotations_are_set_aside_within_the_budget(tmp_path: Path):
    raw = conversations(tmp_path / "raw", count=10, bad=2)
    report = whole(raw, tmp_path / "out", budget=0.2)
    assert report == PrepareReport(
        "llava_conversation",
        "train",
        8,
        {"duplicate": 1},
        quarantined=2,
        shards=1,
        first_bad="0: no image gone.jpg; looked in RAW/images, RAW/../coco/images, RAW",
    )
    lines = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").open()]
    assert [line["id"] for line in lines] == ["0", "1-0"]
    assert "gone.jpg" in lines[0]["reason"] and "not a readable image" in lines[1]["reason"]
    assert str(tmp_path) not in json.dumps(lines)
    assert verify(tmp_path / "out", progress=False).bad == ()


def test_the_card_says_what_was_asked_and_what_there_is(tmp_path: Path):
    raw = conversations(tmp_path / "raw", count=10, images=2, size=(400, 300))
    whole(raw, tmp_path / "out", short_side=150)
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert set(card["request"]["sources"]) == {"conversation_58k.json"}
    assert card["request"]["short_side"] == 150 and len(card["request"]["templates"]) == 16
    assert card["report"]["written"] == 10
    assert card["lengths"]["answers"] == {
        "unit": "characters",
        "count": 10,
        "min": 1,
        "mean": 5.5,
        "max": 10,
    }
    assert card["lengths"]["instructions"]["mean"] == 10.0
    assert card["images"]["width"] == {"count": 10, "min": 200, "mean": 200.0, "max": 200}
    assert card["images"]["height"]["max"] == 150
    sizes = [len(record.images[0]) for record in read_records(tmp_path / "out")]
    assert card["images"]["bytes"]["mean"] == round(sum(sizes) / 10, 3)
    assert card["parts"] == [{"records": 10, "quarantined": 0, "shards": 1}]
    assert card["fingerprint"] == fingerprint(check_index(tmp_path / "out"))
    assert str(tmp_path) not in json.dumps(card)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "card.json",
        "index.json",
        "quarantine.jsonl",
        "shard.00000.mds.zstd",
    ]


def test_streaming_reads_the_same_shards(tmp_path: Path, small_parts: None):
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


def test_the_bytes_depend_neither_on_workers_nor_on_portions(tmp_path: Path, small_parts: None):
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
    parts = json.loads(one["card.json"])["parts"]
    assert len(parts) == 13 and sum(part["records"] for part in parts) == 94
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


def start(tmp_path: Path, raw: Path, out: Path, *options: str) -> "subprocess.Popen[str]":
    script = tmp_path / "convert.py"
    if not script.is_file():  # another process may be reading it
        script.write_text(CONVERT)
    return subprocess.Popen(
        [sys.executable, str(script), "--raw", str(raw), "--out", str(out), "--json", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_after_a_kill_finished_parts_are_not_touched(tmp_path: Path, workers: str):
    raw = conversations(tmp_path / "raw", count=48, images=48, size=(900, 700))
    out = tmp_path / "out"
    process = start(tmp_path, raw, out, "--workers", workers)
    wait_until(lambda: len(list(out.glob(".parts/part-*/part.json"))) >= 2, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(ValueError, match=r"index\.json"):
        check_index(out)
    stored = [identity(path) for path in sorted(out.glob(".parts/part-*/shard.*"))]
    assert stored and not (out / "index.json").exists()
    again = start(tmp_path, raw, out, "--workers", workers)
    text, errors = again.communicate(timeout=600)
    assert again.returncode == 0, errors
    assert json.loads(text)["written"] == 48
    assert set(stored) <= {identity(path) for path in out.glob("shard.*")}
    undisturbed = start(tmp_path, raw, tmp_path / "undisturbed")
    assert undisturbed.wait(timeout=600) == 0
    assert contents(out) == contents(tmp_path / "undisturbed")


def identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def wait_until(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_kill_while_parts_are_merged_is_made_good(
    tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
):
    raw = conversations(tmp_path / "raw", count=40, images=20)
    moved: list[Path] = []
    plain = Path.replace

    def stopping(self: Path, target: Path) -> Path:
        if self.name.startswith("shard."):
            moved.append(self)
            if len(moved) == 3:
                raise KeyboardInterrupt
        return plain(self, target)

    monkeypatch.setattr(Path, "replace", stopping)
    with pytest.raises(KeyboardInterrupt):
        whole(raw, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("shard.*"))) == 2
    with pytest.raises(ValueError, match=r"index\.json"):
        check_index(tmp_path / "out")
    monkeypatch.setattr(Path, "replace", plain)
    whole(raw, tmp_path / "out")
    whole(raw, tmp_path / "other")
    assert contents(tmp_path / "out") == contents(tmp_path / "other")


def test_an_image_is_decoded_once_however_far_apart_its_examples_are(
    tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
):
    raw = conversations(tmp_path / "raw", count=60, images=12)
    decoded: list[Path] = []
    plain = conversion.reencode

    def counting(path: Path, **options: Any) -> bytes:
        decoded.append(path)
        return plain(path, **options)

    monkeypatch.setattr(conversion, "reencode", counting)
    assert whole(raw, tmp_path / "out").written == 60
    assert len(decoded) == len(set(decoded)) == 12
    for record in read_records(tmp_path / "out"):
        name = int(record.id.split("-")[0]) % 12
        assert record.images[0] == (raw / f"images/{name}.jpg").read_bytes()


def test_ids_are_compared_over_the_whole_split(tmp_path: Path, small_parts: None):
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
    monkeypatch.setattr(survey, "PART_EXAMPLES", 1)
    monkeypatch.setattr(survey, "_BUCKETS", 4)
    raw = conversations(tmp_path / "raw", count=30, images=30)
    report = whole(raw, tmp_path / "out")
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert report.written == 30 and len(card["parts"]) == 32
    ids = sorted(int(record.id.split("-")[0]) for record in read_records(tmp_path / "out"))
    assert ids == list(range(30))


def test_over_the_budget_nothing_can_be_read_but_the_reasons(tmp_path: Path, small_parts: None):
    raw = conversations(tmp_path / "raw", count=40, bad=2, images=20)
    with pytest.raises(OverBudgetError, match=r"1 of 41 annotations are bad.*budget of 1.0%"):
        whole(raw, tmp_path / "out")  # seen before anything is converted
    assert not list((tmp_path / "out/.parts").glob("part-*"))
    with pytest.raises(OverBudgetError, match=r"2 of 41 annotations are bad.*budget of 3.0%"):
        whole(raw, tmp_path / "out", budget=0.03)
    visible = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert visible == [".parts", "quarantine.jsonl"]
    reasons = [json.loads(line)["id"] for line in (tmp_path / "out/quarantine.jsonl").open()]
    assert reasons == ["0", "1-0"]
    assert whole(raw, tmp_path / "out", budget=0.1).quarantined == 2


def test_mended_images_are_read_again_and_the_rest_is_kept(
    tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
):
    raw = conversations(tmp_path / "raw", count=40, images=20)
    good = (raw / "images/7.jpg").read_bytes()
    (raw / "images/7.jpg").write_bytes(good[:100])
    with pytest.raises(OverBudgetError, match="2 of 41 annotations are bad"):
        whole(raw, tmp_path / "out")
    (raw / "images/7.jpg").write_bytes(good)
    converted: list[int] = []
    plain = conversion._write

    def counting(directory: Path, *rest: Any) -> conversion.PartReport:
        converted.append(int(directory.name.split(".")[1].removeprefix("part-")))
        return plain(directory, *rest)

    kept = {int(path.parent.name[5:]) for path in tmp_path.glob("out/.parts/part-*/part.json")}
    monkeypatch.setattr(conversion, "_write", counting)
    assert whole(raw, tmp_path / "out").written == 40
    assert len(kept - set(converted)) == len(kept) - 1
    whole(raw, tmp_path / "other")
    assert contents(tmp_path / "out") == contents(tmp_path / "other")


def test_a_second_process_is_told_that_it_is_busy(tmp_path: Path):
    raw = conversations(tmp_path / "raw", count=4)
    (tmp_path / "out/.parts").mkdir(parents=True)
    with (
        locked(tmp_path / "out/.parts/run.lock", shared=True),
        pytest.raises(BusyError, match=r"another process is writing to .*out; wait until it has"),
    ):
        whole(raw, tmp_path / "out")
    assert whole(raw, tmp_path / "out").written == 4


def test_an_unfinished_conversion_of_another_request_is_refused(tmp_path: Path, small_parts: None):
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


def test_a_record_too_large_to_read_back_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(conversion, "MAXIMUM_RECORD_BYTES", 5000)
    raw = conversations(tmp_path / "raw", count=4, images=2)
    Image.effect_noise((280, 280), 90).convert("RGB").save(raw / "images/1.jpg")
    report = whole(raw, tmp_path / "out", budget=0.5)
    assert (report.written, report.quarantined) == (2, 2)
    assert "more than the 5000 of a record" in (tmp_path / "out/quarantine.jsonl").read_text()


def test_a_dataset_file_of_ones_own_leaves_no_path_in_the_card(tmp_path: Path):
    raw = conversations(tmp_path / "raw", count=4)
    own = tmp_path / "mine.yaml"
    shipped = Path(merging.__file__).parents[1] / "datasets/llava_conversation.yaml"
    own.write_text(shipped.read_text().replace("name: llava_conversation", "name: mine"))
    report = prepare(str(own), raw, tmp_path / "out", progress=False)
    assert report.dataset == "mine" and report.written == 4
    assert str(tmp_path) not in (tmp_path / "out/card.json").read_text()
