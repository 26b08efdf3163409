"""The public surface: its documented examples on a tiny model, and that it answers as the rest."""

import doctest
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import ibtrain
import ibtrain.api
from ibtrain import InstructBlip
from ibtrain.cli import main
from tests.tiny import write_tiny_base


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_processor: Path) -> Path:
    folder = tmp_path_factory.mktemp("api")
    write_tiny_base(folder / "my-model", tiny_processor)
    Image.new("RGB", (30, 20), (200, 30, 40)).save(folder / "picture.jpg")
    return folder


def test_every_example_of_the_documentation_runs(folder: Path, monkeypatch):
    monkeypatch.chdir(folder)
    assert doctest.testmod(ibtrain).failed == 0
    result = doctest.testmod(
        ibtrain.api, optionflags=doctest.ELLIPSIS, extraglobs={"InstructBlip": InstructBlip}
    )
    assert result.failed == 0 and result.attempted >= 10


@pytest.mark.usefixtures("logger_as_it_was")
def test_the_answer_is_the_command_line_s(folder: Path, capsys):
    model = InstructBlip.load(folder / "my-model", device="cpu")
    picture, prompt = folder / "picture.jpg", "What color is the circle?"
    words = ["--image", str(picture), "--prompt", prompt, "--beams", "2", "--max-new-tokens", "6"]
    assert main(["ask", "--json", str(folder / "my-model"), *words]) == 0
    answer = json.loads(capsys.readouterr().out)["answer"]
    assert answer
    with Image.open(picture) as opened:
        for image in (picture, str(picture), picture.read_bytes(), opened, [picture], (picture,)):
            assert model.ask(image, prompt, beams=2, max_new_tokens=6) == answer
    assert isinstance(model.ask(None, prompt, beams=1, max_new_tokens=2), str)


@pytest.mark.usefixtures("logger_as_it_was")
def test_the_ranking_is_the_command_line_s(folder: Path, capsys):
    picture, prompt = folder / "picture.jpg", "What color is the circle?"
    words = ["--image", str(picture), "--prompt", prompt, "--candidates", "red,blue,green"]
    assert main(["rank", "--json", str(folder / "my-model"), *words]) == 0
    wanted = json.loads(capsys.readouterr().out)["candidates"]
    model = InstructBlip.load(folder / "my-model", device="cpu")
    ranked = model.rank(picture, prompt, ["green", "blue", "red"])
    assert [one.text for one in ranked] == [row["text"] for row in wanted]
    assert [one.logprob for one in ranked] == pytest.approx([row["logprob"] for row in wanted])
    labels = model.rank(picture, prompt, {"warm": ["red"], "cold": ["blue", "green"]})
    assert {one.text for one in labels} == {"warm", "cold"}
    with pytest.raises(ValueError, match="candidates is empty"):
        model.rank(None, prompt, [])


def test_what_is_wrong_is_said(folder: Path):
    model = InstructBlip.load(folder / "my-model")
    with pytest.raises(FileNotFoundError, match=r"none\.jpg is not there"):
        model.ask(folder / "none.jpg", "?")
    with pytest.raises(ValueError, match="image of type int"):
        model.ask(3, "?")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="beams is 0"):
        model.ask(None, "?", beams=0)
    with pytest.raises(ValueError, match="nowhere"):
        InstructBlip.load(folder / "nowhere")
    with pytest.raises(AttributeError, match="no attribute 'Instructblip'"):
        ibtrain.Instructblip  # type: ignore[attr-defined]  # noqa: B018


def test_importing_ibtrain_imports_nothing_heavy():
    script = (
        "import sys, ibtrain; assert 'InstructBlip' in dir(ibtrain)\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
