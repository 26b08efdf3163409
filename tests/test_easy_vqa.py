"""The worked example of a dataset of one's own, on a few of its pictures."""

import json
import subprocess
import sys
from pathlib import Path

import easy_vqa
import pytest

from ibtrain.config import load_recipe
from ibtrain.data.catalog import load_entry
from ibtrain.data.preparation.prepare import prepare
from ibtrain.data.shards.records import read_records
from ibtrain.evaluation.protocols import protocol_of

EXAMPLE = Path(__file__).parents[1] / "examples/easy_vqa"
LISTS = """
import runpy, sys, easy_vqa
paths = easy_vqa.get_train_image_paths()
few = {number: paths[number] for number in (0, 1)}
easy_vqa.get_train_image_paths = easy_vqa.get_test_image_paths = lambda: few
sys.argv = [sys.argv[1], sys.argv[2]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("easy") / "raw"
    script = [sys.executable, "-c", LISTS, EXAMPLE / "make_lists.py", directory]
    done = subprocess.run(script, capture_output=True, text=True, cwd=EXAMPLE.parents[1])
    assert "train: 38,575 questions about 2 images" in done.stdout, done.stdout + done.stderr
    return directory


def test_the_lists_are_the_packages_and_are_prepared(raw, tmp_path):
    lines = (raw / "train.jsonl").read_text().splitlines()
    assert len(lines) == 38_575
    questions, answers, numbers = easy_vqa.get_train_questions()
    first = json.loads(lines[0])
    assert (first["question"], first["answer"]) == (questions[0], answers[0])
    assert first["image"] == f"train/{numbers[0]}.png"
    kept = [line for line in lines if json.loads(line)["image"] in ("train/0.png", "train/1.png")]
    (raw / "train.jsonl").write_text("\n".join(kept) + "\n")
    report = prepare(str(EXAMPLE / "easy_vqa.yaml"), raw, tmp_path / "shards", progress=False)
    assert (report.written, report.quarantined) == (len(kept), 0)
    (way,) = protocol_of(tmp_path / "shards").ways.values()
    assert sorted(way.candidates) == sorted(easy_vqa.get_answers())
    assert {one.answers[0].text for one in read_records(tmp_path / "shards")} <= set(way.candidates)


def test_file_and_recipe():
    assert load_entry(EXAMPLE / "easy_vqa.yaml").splits["test"].size == 9_673
    recipe = load_recipe(str(EXAMPLE / "recipe.yaml"), [])
    assert [one.dataset for one in recipe.data.mixture] == ["easy_vqa"]
