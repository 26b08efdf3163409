import hashlib
import json
from pathlib import Path

import pytest

from ibtrain.data import catalog
from ibtrain.data.readers.files import annotation_files
from ibtrain.data.toy import PLACES, tokenizers, write_toy
from ibtrain.data.toy.world import HELD_OUT_PAIRS


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


def test_every_dataset_of_the_catalog_has_its_place():
    assert set(PLACES) == {entry.name for entry in catalog.entries()} | {"toy_text"}
    for name, place in PLACES.items():
        assert place.splits[0] == catalog.get(name).default_split


@pytest.mark.parametrize("dataset", PLACES)
def test_the_files_of_every_split_are_where_they_are_looked_for(toy: Path, dataset: str):
    for split in PLACES[dataset].splits:
        paths = annotation_files(toy / PLACES[dataset].folder, split, catalog.get(dataset))
        assert all(path.exists() for path in paths)


def test_held_out_pairs_are_in_no_training_file(toy: Path):
    folders = {
        PLACES[entry.name].folder for entry in catalog.entries() if entry.role == "held_in"
    } | {"text"}
    files = [path for name in folders for path in (toy / name).rglob("*.json")]
    files += [toy / "text/corpus.txt", toy / "gqa/testdev_balanced_questions.json"]
    assert len(files) > 20
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert not [pair for pair in HELD_OUT_PAIRS if " ".join(pair) in text], path
    unseen = (toy / "gqa/challenge_balanced_questions.json").read_text()
    unseen += (toy / "nocaps/nocaps_val_4500_captions.json").read_text()
    assert [pair for pair in HELD_OUT_PAIRS if " ".join(pair) in unseen]


def test_a_toy_that_is_there_is_left_alone(toy: Path):
    before = {path: path.stat().st_mtime_ns for path in toy.rglob("*")}
    counts = write_toy(toy, seed=3, train_images=60, test_images=20, num_query_tokens=4)
    assert counts["coco_images"] == 66
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

    monkeypatch.setattr(tokenizers, "write_processor", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_toy(tmp_path / "toy", train_images=2, test_images=2)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_toy_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="at least 1"):
        write_toy(tmp_path / "toy", train_images=0)


def test_the_smallest_toy_is_whole(tmp_path: Path):
    counts = write_toy(tmp_path / "toy", train_images=1, test_images=1, num_query_tokens=2)
    assert json.loads((tmp_path / "toy/toy.json").read_text())["counts"] == counts
    assert counts["vqav2_train"] >= 1 and counts["visdial_val"] == 40
