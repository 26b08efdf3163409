"""All chunks into one directory, within the budget of bad annotations, and the card."""

import json
from pathlib import Path

import pytest

from ibtrain.data.preparation import merging
from ibtrain.data.preparation.prepare import OverBudgetError, PrepareReport, prepare
from ibtrain.data.shards.records import (
    check_index,
    fingerprint,
    read_records,
)
from ibtrain.data.shards.verify import verify
from tests.data.preparation.conversions import contents, conversations, whole


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


def test_a_kill_while_parts_are_merged_is_made_good(
    tmp_path: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch
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


def test_over_the_budget_nothing_can_be_read_but_the_reasons(tmp_path: Path, small_chunks: None):
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


def test_a_dataset_file_of_ones_own_leaves_no_path_in_the_card(tmp_path: Path):
    raw = conversations(tmp_path / "raw", count=4)
    own = tmp_path / "mine.yaml"
    shipped = Path(merging.__file__).parents[1] / "datasets/llava_conversation.yaml"
    own.write_text(shipped.read_text().replace("name: llava_conversation", "name: mine"))
    report = prepare(str(own), raw, tmp_path / "out", progress=False)
    assert report.dataset == "mine" and report.written == 4
    assert str(tmp_path) not in (tmp_path / "out/card.json").read_text()
