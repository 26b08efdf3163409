"""The package as it is installed: away from the repository, with nothing of it on the path."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tools"))

from gpu_parts.training import REHEARSED, recipe  # noqa: E402
from gpu_parts.world import make_world  # noqa: E402

SIZES = ("--nodes", "2", "--gpus-per-node", "8")
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The `ibtrain` of an environment that has the wheel, and the libraries of this one: what is
    needed of them is held against the declared ones by test_requirements.py, without installing
    5 GB again.
    """
    directory = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", directory, ROOT], check=True, env=ENVIRONMENT
    )
    (wheel,) = directory.glob("ibtrain-*.whl")
    venv.create(directory / "venv", with_pip=False)
    python = directory / "venv/bin/python"
    site = next((directory / "venv/lib").glob("python*/site-packages"))
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [*pip, "--python", python, "install", "--no-deps", wheel]
    subprocess.run(install, check=True, env=ENVIRONMENT)
    return directory / "venv/bin/ibtrain"


@pytest.fixture(scope="module")
def run(installed, tmp_path_factory):
    """Runs it where no checkout is, and returns what it says."""
    away = tmp_path_factory.mktemp("away")

    def run(*arguments: str | Path, codes: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run(
            [installed, *arguments], cwd=away, env=ENVIRONMENT, capture_output=True, text=True
        )
        assert done.returncode in codes, done.stdout + done.stderr
        return done.stdout

    return run


def test_it_is_the_wheel_that_runs(installed):
    code = "import ibtrain.sharding as s; print(s.__file__, s.DS_CONFIGS)"
    told = subprocess.run(
        [installed.with_name("python"), "-c", code],
        cwd="/",
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    ).stdout
    assert str(ROOT) not in told
    assert told.count(str(installed.parents[1])) == 2


def test_recipes_plans_and_checks(run):
    assert "vicuna13b" in run("recipes").split()
    plan = json.loads(run("plan", "flan-t5-xl", "--gpu", "h100", "--json"))
    assert [choice["sharding"] for choice in plan["choices"]] == ["zero1", "zero2", "zero3"]
    job = json.loads(run("slurm", "vicuna7b", *SIZES, "--gpu", "h100", "output=job", "--json"))
    written = {path.name for path in Path(job["script"]).parent.iterdir()}
    assert {"train.sbatch", "functions.sh", "environment.sh"} <= written
    rows = {
        row["name"]: row for row in json.loads(run("check", "--json", codes=(0, 1)))["findings"]
    }
    assert rows["torch"]["status"] == "OK" and rows["transformers"]["status"] == "OK"
    assert int(rows["other packages"]["found"].split()[0]) > 10


def test_a_run_of_two_steps(run, tmp_path):
    world = make_world(tmp_path / "world")
    document = recipe(REHEARSED[0], world, True, 2, 2) | {"sharding": "zero3"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    run("train", tmp_path / "recipe.yaml", f"output={tmp_path / 'run'}")
    assert (tmp_path / "run/checkpoints/LATEST").read_text() == "step-00000002\n"
