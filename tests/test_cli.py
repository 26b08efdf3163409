"""The command line as a contract: exit codes, the JSON documents, and errors for people."""

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ibtrain import __version__
from ibtrain.cli import main
from ibtrain.config import load_recipe, shipped_recipes
from ibtrain.data.toy import write_toy

RECIPE = """\
name: tiny
root: {root}
output: ${{root}}/run
model: {{base: "${{root}}/base"}}
data:
  mixture:
    - {{dataset: vqav2, path: "${{root}}/shards/vqav2"}}
    - {{dataset: aokvqa, path: "${{root}}/shards/aokvqa"}}
  epoch_samples: 64
training: {{steps: 4, global_batch: 8, micro_batch: 4}}
"""

pytestmark = pytest.mark.usefixtures("logger_as_it_was")


@pytest.fixture
def document(capsys) -> Callable[..., Any]:
    """Runs a verb with --json; the one document on stdout."""

    def run(*arguments: str) -> Any:
        assert main([*arguments, "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def complaint(capsys) -> Callable[..., str]:
    """Runs a request that is wrong; what stands on stderr."""

    def run(*arguments: str) -> str:
        assert main(arguments) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("ibtrain: ")
        return printed.err

    return run


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with raw data, two prepared datasets and a recipe of them."""
    directory = tmp_path_factory.mktemp("world")
    write_toy(directory / "raw", train_images=20, test_images=4)
    for dataset in ("vqav2", "aokvqa"):
        raw, out = str(directory / "raw" / dataset), str(directory / "shards" / dataset)
        assert main(["data", "prepare", dataset, "--raw", raw, "--out", out]) == 0
    (directory / "tiny.yaml").write_text(RECIPE.format(root=directory))
    return directory


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    first, python, *libraries = capsys.readouterr().out.splitlines()
    assert first == f"ibtrain {__version__}"
    assert python == f"Python {platform.python_version()}"
    assert [line.split()[0] for line in libraries] == [
        *("torch", "triton", "deepspeed", "transformers", "peft", "mosaicml-streaming", "numpy")
    ]
    assert f"torch {version('torch')}" in libraries


def test_module_and_command_are_the_same_program(document):
    (command,) = entry_points(group="console_scripts", name="ibtrain")
    assert command.load() is main
    arguments = [sys.executable, "-m", "ibtrain", "recipes", "--json"]
    ended = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout) == document("recipes")


@pytest.mark.parametrize("arguments", [[], ["trian"], ["data"], ["train"], ["recipes", "print"]])
def test_what_is_no_request(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: ibtrain" in capsys.readouterr().err


def test_recipes_are_listed_and_shown(document, capsys):
    assert document("recipes") == {"recipes": list(shipped_recipes())}
    assert main(["recipes"]) == 0
    assert capsys.readouterr().out.split() == list(shipped_recipes())
    for name, file in shipped_recipes().items():
        assert document("recipes", "show", name) == {"name": name, "yaml": file.read_text()}


def test_a_recipe_is_copied_once(complaint, capsys, tmp_path):
    copy = tmp_path / "mine.yaml"
    assert main(["recipes", "cp", "toy", str(copy)]) == 0
    assert capsys.readouterr().out == f"copied to {copy}\n"
    assert load_recipe(str(copy)) == load_recipe("toy")
    copy.write_text("changed")
    assert f"{copy} exists" in complaint("recipes", "cp", "toy", str(copy))
    assert copy.read_text() == "changed"
    assert "recipes [show NAME | cp NAME FILE]" in complaint("recipes", "cp", "toy")


@pytest.mark.parametrize(
    "request_of",
    [("recipes", "show"), ("train",), ("data", "mixture")],
    ids=" ".join,
)
def test_an_unknown_recipe_gets_the_nearest_named(complaint, request_of):
    assert "no recipe 'toi'" in (printed := complaint(*request_of, "toi"))
    assert "did you mean 'toy'?" in printed


def test_the_catalog(document, capsys):
    rows = document("data", "catalog")
    assert main(["data", "catalog"]) == 0
    text = capsys.readouterr().out
    for row in rows:
        assert row["name"] in text
        assert row["role"] in ("held_in", "held_out_seen", "held_out_unseen")
        assert all(isinstance(row[key], str) and row[key] for key in ("task", "metric"))
        assert row["files"] and all(isinstance(file, str) for file in row["files"])
    assert {"coco_caption", "vqav2", "aokvqa", "gqa"} <= {row["name"] for row in rows}


def test_an_unknown_dataset_gets_the_nearest_named(complaint, tmp_path):
    folders = ("--raw", str(tmp_path), "--out", str(tmp_path / "out"))
    assert "did you mean 'coco_caption'?" in complaint("data", "prepare", "coco_capton", *folders)
    assert "annotations" in complaint("data", "prepare", "vqav2", *folders)  # none are there
    assert list(tmp_path.iterdir()) == []


def test_prepare_says_what_became_of_the_annotations(document, world, tmp_path):
    raw, out = str(world / "raw/aokvqa"), str(tmp_path / "out")
    report = document("data", "prepare", "aokvqa", "--raw", raw, "--out", out)
    assert report["written"] > 0
    assert (report["dropped"], report["quarantined"], report["shards"]) == (0, 0, 1)


def test_the_mixture(document, world, capsys):
    rows = document("data", "mixture", str(world / "tiny.yaml"))["datasets"]
    assert [row["name"] for row in rows] == ["vqav2", "aokvqa"]
    for row in rows:
        assert set(row) >= {"name", "size", "weight", "share", "samples_per_epoch"}
        assert row["weight"] == pytest.approx(row["size"] ** 0.5)
        assert row["samples_per_epoch"] == pytest.approx(64 * row["share"])
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert main(["data", "mixture", str(world / "tiny.yaml"), "data.balance=uniform"]) == 0
    assert capsys.readouterr().out.count("50.00%") == 2


def test_the_plan(document, capsys):
    """The keys that other programs read, and what people do; a recipe's keys stand anywhere."""
    request = ("plan", "vicuna13b", "--nodes", "2", "training.micro_batch=2", "--gpu", "a100-40g")
    plan = document(*request, "training.global_batch=32")
    assert set(plan) >= {"choices", "chosen", "because"}
    assert plan["samples_per_micro_batch"] == 2
    for choice in plan["choices"]:
        assert set(choice) >= {
            "sharding",
            "fits",
            "memory_bytes_per_gpu",
            "step_seconds",
            "mfu",
            "traffic_bytes_per_step",
        }
        assert choice["memory_bytes_per_gpu"]["total"] > 0
    assert plan["chosen"] in {choice["sharding"] for choice in plan["choices"]}
    assert main([*request]) == 0
    assert f"take sharding={plan['chosen']}: " in capsys.readouterr().out


def test_a_plan_that_fits_nowhere_is_a_failure(capsys):
    request = ["plan", "vicuna13b", "model.train_parts.language=full", "--gpu", "rtx3090"]
    assert main([*request, "--gpus-per-node", "1", "--json"]) == 1
    printed = capsys.readouterr()
    plan = json.loads(printed.out)
    assert plan["chosen"] == ""
    assert plan["because"].startswith("no sharding fits")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpu", "h10"), "did you mean 'h100'"),
        (("--gpu", "h100", "--nodes", "0"), "nodes is 0"),
        (
            ("--gpu", "h100", "--network", "0"),
            "the network's rate is 0 GB/s; give",
        ),
        (("--gpu", "h100", "--answer-tokens", "0"), "a sample of 0 answer tokens"),
        (("--gpu", "h100", "sharding=zero9"), "'zero9' is neither a file nor one of ds_configs/"),
    ],
)
def test_plans_that_cannot_be_made(arguments, message, complaint):
    assert message in complaint("plan", "vicuna7b", *arguments)


@pytest.mark.parametrize("words", [["vicuna"], ["key=value", "vicuna"], ["--key=value"]])
def test_words_that_are_no_request(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["plan", "vicuna7b", "--gpu", "h100", *words])
    assert ended.value.code == 2
    assert f"unrecognized arguments: {' '.join(words)}\n" in capsys.readouterr().err


def test_a_recipe_that_cannot_be_used(complaint, world, tmp_path):
    recipe = str(world / "tiny.yaml")
    printed = complaint("data", "mixture", recipe, "data.balanc=uniform")
    assert "unknown key 'data.balanc'; did you mean 'balance'?" in printed
    printed = complaint("data", "mixture", recipe, f"root={tmp_path}")
    assert str(tmp_path / "shards/vqav2") in printed and "ibtrain data prepare" in printed


def test_a_model_that_is_not_there(complaint, tmp_path):
    absent, out = str(tmp_path / "absent"), str(tmp_path / "out")
    assert f"{absent} is not a model" in complaint("export", absent, "--to", "hf", "--out", out)


def test_ask_names_the_image_that_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "model", "--image", "no/such.jpg", "--prompt", "What?"]) == 2
    assert "the image no/such.jpg is not there" in capsys.readouterr().err


def test_ask_names_the_image_that_is_none(complaint, tmp_path):
    file = tmp_path / "answer.txt"
    file.write_text("42")
    assert f"{file} is not a picture" in complaint(
        "ask", "model", "--image", str(file), "--prompt", "What?"
    )


def test_ask_names_the_image_that_is_too_large(complaint, tmp_path, monkeypatch):
    file = tmp_path / "wall.png"
    Image.new("1", (60, 50)).save(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert f"{file} is too large a picture" in complaint(
        "ask", "model", "--image", str(file), "--prompt", "What?"
    )


def test_rank_names_what_is_wrong_with_its_candidates(complaint, tmp_path):
    empty = tmp_path / "none.txt"
    empty.write_text("")
    request = ("rank", "model", "--prompt", "What?", "--candidates")
    assert "the list of candidates is empty" in complaint(*request, str(empty))
    assert "cannot be read" in complaint(*request, str(tmp_path / "missing.json"))


def test_compare_names_the_directory_that_is_no_evaluation(complaint, tmp_path):
    assert f"{tmp_path / 'results.json'} is missing" in complaint(
        "compare", str(tmp_path), str(tmp_path)
    )


def test_a_mean_goes_with_steps(complaint, tmp_path):
    request = ("evaluate", "model", "--data", str(tmp_path), "--out", str(tmp_path / "out"))
    assert "--select and --mean go with --steps" in complaint(*request, "--select", "all")
    assert "--vocabulary gqa: give NAME=VALUE" in complaint(*request, "--vocabulary", "gqa")
