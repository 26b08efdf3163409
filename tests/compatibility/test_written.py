"""What an earlier version wrote is read, and its run goes on to the same end (see written/)."""

import json
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from ibtrain.cli import main
from ibtrain.run_directory import latest_step, verify_step

ROOT = Path(__file__).parents[2]
WRITTEN = Path(__file__).with_name("written")
ANSWER = "ri oersthing Howtaherj shorthany"


@pytest.fixture
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that may be written to, as the current directory: its recipe's paths are relative."""
    directory = shutil.copytree(WRITTEN, tmp_path / "before")
    monkeypatch.chdir(directory)
    return directory


def machine() -> dict[str, str]:
    """What decides the last bit of a sum."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    told = dict(line.split("\t:", 1) for line in lines if "\t:" in line)
    features = sorted(told.get("flags\t", told.get("flags", "")).split())
    return {
        "processor": told.get("model name", platform.processor()).strip(),
        "vectors": " ".join(one for one in features if one.startswith(("avx", "amx", "fma"))),
        **{name: version(name) for name in ("torch", "transformers", "deepspeed")},
    }


def test_a_run_goes_on_to_the_same_end(before: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ibtrain", "train", "tiny.yaml"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "going on from step-00000004" in done.stdout + done.stderr
    step = latest_step(before / "run")
    assert step is not None and verify_step(step) == 12
    ours, theirs = (load_file(one / "trainable.safetensors") for one in (step, before / "quiet"))
    same = machine() == json.loads((before / "machine.json").read_text())
    tolerance = 0.0 if same else 1e-4
    assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("model", ["run", "exports/hf", "exports/peft", "exports/lavis"])
def test_models_answer_as_before(
    before: Path, capsys: pytest.CaptureFixture[str], model: str, logger_as_it_was: None
) -> None:
    question = ["--image", "picture.png", "--prompt", "what is this?", "--max-new-tokens", "12"]
    assert main(["ask", model, *question]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == ANSWER


@pytest.mark.parametrize(("dataset", "records"), [("aokvqa", 16), ("coco_caption", 40)])
def test_shards_are_intact(
    before: Path, capsys: pytest.CaptureFixture[str], dataset: str, records: int
) -> None:
    assert main(["data", "verify", f"shards/{dataset}", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bad"] == [] and report["records"] == records
