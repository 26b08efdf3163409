"""The job that `ibtrain slurm` writes, with a `sinfo` and an `sbatch` that say what Slurm's do.

tests/slurm/ gives such jobs to a real Slurm.
"""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from ibtrain.cli import main
from ibtrain.config import load_recipe
from ibtrain.jobs import Request, make_job, seconds_of

SINFO = """#!/bin/sh
case "$*" in
*%R*) printf 'gpu|gpu:h100:8(S:0-1)\\nbig|gpu:h200:4,tmp:1\\ncpu|(null)\\n' ;;
*%P*) printf 'gpu*\\nbig\\ncpu\\n' ;;
esac
"""
SBATCH = """#!/bin/sh
echo "sbatch: error: invalid account or qos" >&2
echo "sbatch: error: Batch job submission failed: Invalid account or account/partition" >&2
exit 1
"""

pytestmark = pytest.mark.usefixtures("logger_as_it_was")


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """A directory on the PATH with the commands."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("sinfo", SINFO), ("sbatch", SBATCH)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return programs


def asked(run: Path, *more: str) -> list[str]:
    sizes = ["--nodes", "2", "--gpus-per-node", "4"]
    return ["slurm", "vicuna7b", *sizes, f"output={run}", *more]


def complaint(capsys, *arguments: str) -> str:
    assert main([*arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line.removeprefix("ibtrain: ")


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("2:00:05", 7205),
        ("1-0", 86_400),
        ("1-2:30", 95_400),
        ("1-2:30:01", 95_401),
    ],
)
def test_slurm_s_times(time, seconds):
    assert seconds_of(time) == seconds


@pytest.mark.parametrize("time", ["", "1h", "2:", "a-1", "1:2:3:4", "-5"])
def test_no_times(time):
    with pytest.raises(ValueError, match="is not of Slurm's form"):
        seconds_of(time)


def test_the_job_says_what_was_asked(slurm, tmp_path, capsys):
    run = tmp_path / "a run"
    more = ("--time", "1-12", "--partition", "gpu", "--account", "lab", "--container", "img.sif")
    assert main([*asked(run, "sharding=auto", *more), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["script"] == str(run / "train.sbatch") and told["job"] is None
    assert told["sharding"] == told["plan"]["chosen"] == "zero2"
    assert told["plan"]["device"] == "h100"  # as Slurm says
    script = (run / "train.sbatch").read_text()
    options = [line for line in script.splitlines() if line.startswith("#SBATCH ")]
    assert options == [
        "#SBATCH --job-name=ibtrain",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --time=1-12",
        "#SBATCH --signal=B:USR1@600",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        f'#SBATCH --output="{run}/%x-%j.out"',
        f"#SBATCH --chdir={Path.cwd()}",
        "#SBATCH --partition=gpu",
        "#SBATCH --account=lab",
    ]
    assert f"set -- --max-restarts 100 --container img.sif -- '{run}/job.yaml' \"$@\"" in script
    subprocess.run(["bash", "-n", str(run / "train.sbatch")], check=True)
    frozen = load_recipe(str(run / "job.yaml"))
    assert frozen == load_recipe("vicuna7b", [f"output={run}", "sharding=zero2"])
    assert yaml.safe_load((run / "plan.json").read_text())["because"] == told["because"]


def test_a_named_sharding_is_kept_and_the_other_told(slurm, tmp_path):
    recipe = load_recipe("vicuna7b", [f"output={tmp_path}", "sharding=zero3"])
    job = make_job(recipe, Request(1, 8))
    assert job.sharding == "zero3"
    assert job.because.startswith("the recipe names it; the planner would take zero2: it needs")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--partition", "nope"], "there is no partition 'nope'; there are big, cpu, gpu"),
        (
            ["--gpus-per-node", "16"],
            "16 GPUs a node are asked for, and no node of partition gpu has more than 8; ask for "
            "--gpus-per-node 8 and more nodes, or another --partition",
        ),
        (
            ["--partition", "cpu"],
            "4 GPUs a node are asked for, and no node of partition cpu has more than 0; ask for "
            "--gpus-per-node 1 and more nodes, or another --partition",
        ),
        (
            ["training.global_batch=60"],
            "training.global_batch is 60, which does not divide among 8 ranks; choose a multiple "
            "of 8, or 6 or 10 ranks",
        ),
        (
            ["--time", "5"],
            "the time is 5, and the ranks are asked to save 600 s before it is over: give more "
            "time, or a smaller --lead",
        ),
        (["--nodes", "0"], "nodes is 0; there must be at least 1"),
        (["--gpu", "h1000"], "no GPU 'h1000' in the table of devices; did you mean 'h100'? there"),
    ],
)
def test_mistakes_are_one_sentence(slurm, tmp_path, capsys, more, said):
    told = complaint(capsys, *asked(tmp_path / "run", *more))
    assert told.startswith(said), told
    assert not (tmp_path / "run").exists()


def test_a_named_sharding_that_does_not_fit_is_refused(slurm, tmp_path, capsys):
    named = ("sharding=zero1", "training.micro_batch=4", "--gpu", "rtx3090")
    told = complaint(capsys, "slurm", "vicuna13b", *asked(tmp_path / "run", *named)[2:])
    assert told.startswith("vicuna13b with sharding=zero1 needs ")
    assert told.endswith(" GiB of each GPU's 23.6; take sharding=zero3-hpz, or sharding=auto")
    assert not (tmp_path / "run").exists()


def test_what_cannot_fit_is_refused(slurm, tmp_path, capsys):
    big = ("training.micro_batch=256", "training.global_batch=2048", "--gpu", "rtx3090")
    told = complaint(capsys, "slurm", "flan-t5-xxl", *asked(tmp_path / "run", *big)[2:])
    assert "no sharding fits" in told


def test_sbatch_s_refusal_is_one_sentence(slurm, tmp_path, capsys):
    told = complaint(capsys, *asked(tmp_path / "run", "--submit"))
    script = tmp_path / "run/train.sbatch"
    why = "invalid account or qos; Invalid account or account/partition"
    assert told == f"sbatch refuses {script}: {why}"


def test_without_slurm_the_gpus_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    told = complaint(capsys, *asked(tmp_path / "run"))
    assert told.startswith("Slurm cannot be asked for its GPUs (there is no sinfo here); name them")
    assert main(asked(tmp_path / "run", "--gpu", "h100")) == 0
    capsys.readouterr()
    told = complaint(capsys, *asked(tmp_path / "run", "--gpu", "h100", "--submit"))
    assert told.startswith("there is no sbatch here; on the cluster's login node: sbatch ")


def test_without_gpus_nothing_is_planned(slurm, tmp_path):
    recipe = load_recipe("toy", [f"output={tmp_path}", "sharding=auto"])
    job = make_job(recipe, Request(2, 1), "none")
    assert (job.sharding, job.because, job.plan) == ("zero2", "there are no GPUs to plan for", None)
