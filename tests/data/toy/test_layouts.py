import hashlib
import json
from pathlib import Path

import pytest

from ibtrain.data import catalog, readers
from ibtrain.data.records import Example
from ibtrain.data.toy import layouts, write_toy
from ibtrain.data.toy.world import HELD_OUT_PAIRS, KINDS

DIRECTORIES = {
    "coco_caption": "coco",
    "vqav2": "vqav2",
    "aokvqa": "aokvqa",
    "llava_conversation": "llava",
    "gqa": "gqa",
}


def hashes(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_the_same_arguments_give_the_same_bytes(toy: Path, tmp_path: Path):
    again = tmp_path / "again"
    write_toy(again, seed=3, train_images=60, test_images=20, num_query_tokens=4)
    assert hashes(again) == hashes(toy)
    write_toy(tmp_path / "other", seed=4, train_images=5, test_images=5)
    assert hashes(tmp_path / "other") != hashes(again)


@pytest.mark.parametrize("dataset", DIRECTORIES)
def test_every_annotation_is_read(toy: Path, dataset: str):
    entry = catalog.get(dataset)
    counts = json.loads((toy / "toy.json").read_text())["counts"]
    for split in ("testdev", "challenge") if dataset == "gqa" else ("train",):
        found = list(readers.read(toy / DIRECTORIES[dataset], split, entry))
        assert all(isinstance(item, Example) for item in found)
        if dataset in ("coco_caption", "vqav2"):
            assert len(found) == counts[dataset]
        if dataset == "gqa":
            assert len(found) == counts[f"gqa_{split}"]
            assert 36 <= len(found) <= 40  # two questions an image, one where only one can be asked
            assert {item.details["question_type"] for item in found} == set(KINDS)


def test_both_forms_of_the_captions_say_the_same(toy: Path, tmp_path: Path):
    entry = catalog.get("coco_caption")
    karpathy = tmp_path / "coco"
    karpathy.mkdir()
    (karpathy / "images").symlink_to(toy / "coco/images")
    (karpathy / "dataset_coco.json").symlink_to(toy / "coco/annotations/dataset_coco.json")

    def said(raw: Path) -> list[tuple[str, str]]:
        return [(item.id, item.answers[0].text) for item in readers.read(raw, "train", entry)]

    assert said(karpathy) == said(toy / "coco")


def test_held_out_pairs_are_in_no_training_file(toy: Path):
    text = (toy / "text/corpus.txt").read_text()
    for name in DIRECTORIES.values():
        for path in (toy / name).rglob("*.json"):
            if name != "gqa":
                text += path.read_text()
    text += (toy / "gqa/testdev_balanced_questions.json").read_text()
    assert not [pair for pair in HELD_OUT_PAIRS if " ".join(pair) in text]


def test_a_toy_that_is_there_is_left_alone(toy: Path):
    before = {path: path.stat().st_mtime_ns for path in toy.rglob("*")}
    counts = write_toy(toy, seed=3, train_images=60, test_images=20, num_query_tokens=4)
    assert counts["coco_images"] == 60
    assert {path: path.stat().st_mtime_ns for path in toy.rglob("*")} == before


def test_other_content_is_refused_with_the_remedy(toy: Path, tmp_path: Path):
    with pytest.raises(FileExistsError, match="another directory"):
        write_toy(toy, seed=4, train_images=60, test_images=20, num_query_tokens=4)
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match="not empty and holds no toy"):
        write_toy(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_interrupted_toy_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(layouts, "write_processor", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_toy(tmp_path / "toy", train_images=2, test_images=2)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_toy_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="at least 1"):
        write_toy(tmp_path / "toy", train_images=0)
