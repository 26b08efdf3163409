"""A real Slurm whose nodes are namespaces of this machine, and jobs in it.

Network, process, mount and host name are each node's own; its disk and its memory are this
machine's. GPUs are links to /dev/null, which Slurm counts and no task can use.
"""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ibtrain.files import sha256_of
from ibtrain.run_directory import latest_step, verify_step
from tests.distributed.conftest import ROOT, world_directory

assert world_directory  # a fixture
HERE = Path(__file__).parent
TRAIN = ROOT / "slurm/train.sbatch"
STEPS = 200
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slurm)


@dataclass
class Job:
    """A job that was given to Slurm."""

    cluster: "Cluster"
    number: str
    file: Path

    def output(self) -> str:
        """What it has written so far, over all its starts."""
        return self.file.read_text(errors="replace") if self.file.exists() else ""

    def told(self) -> dict[str, str]:
        """What Slurm says of it."""
        text = self.cluster.run("scontrol", "show", "job", self.number)
        return dict(re.findall(r"(\S+?)=(\S*)", text))

    def wait_until(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        """Waits for something that the job is to bring about."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"{self.told()}\n{self.output()}"
            time.sleep(0.05)

    def wait_for_start(self, number: int) -> None:
        """Waits until it has begun so many times, and has then done a step or two."""
        begin = f"job {self.number}, start {number}, on "

        def trains() -> bool:
            assert self.told()["JobState"] not in ENDED, self.output()
            return self.output().partition(begin)[2].count("\nstep ") >= 2

        self.wait_until(trains, 180)

    def begin_again(self, number: int) -> None:
        """Waits until it is queued for the n-th time again."""
        self.wait_until(lambda: self.told()["Restarts"] == str(number))
        self.wait_until(lambda: self.told()["JobState"] in ("PENDING", "RUNNING"))

    def wait(self, seconds: float = 240) -> int:
        """Its exit code once it has ended for good."""
        self.wait_until(lambda: self.told()["JobState"] in ENDED, seconds)
        time.sleep(0.3)  # the output of a dead node's shell
        return int(self.told()["ExitCode"].partition(":")[0])


class Cluster:
    """A cluster of some nodes, node1 and so on, with the partitions gpu and urgent."""

    def __init__(self, directory: Path, nodes: int) -> None:
        self.directory, self.nodes = directory, nodes
        self.own = Path(f"/var/tmp/ibtrain-{os.getpid()}")
        """A directory of which every node has its own."""
        self.own.mkdir()
        slurm = {name: value for name, value in os.environ.items() if name.startswith("SLURM_TEST")}
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        links = {path.name for path in Path("/sys/class/net").iterdir()}
        free = next(k for k in range(50) if f"slt{26817 + 100 * k}" not in links)
        self.environment = clean | {
            "SLURM_TEST_PORT": str(26817 + 100 * free),
            "SLURM_TEST_SUBNET": f"10.213.{77 + free}",
        } | slurm | {
            "SLURM_TEST_DIR": str(directory / "slurm"),
            "SLURM_TEST_MODE": "netns",
            "SLURM_TEST_GPUS": "h100:8",
                "SLURM_TEST_REQUEUE_DELAY": "5",
                "SLURM_TEST_PRIVATE": str(self.own),
            "SLURM_CONF": str(directory / "slurm/slurm.conf"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        self.up()

    def up(self) -> None:
        """Starts what is not running."""
        self.run(HERE / "cluster_up.sh", str(self.nodes))

    def down(self) -> None:
        """Ends everything."""
        self.run(HERE / "cluster_down.sh", "--rm")
        self.own.rmdir()

    def node(self, name: str, *action: str) -> str:
        """Has something happen to a node (see cluster_node.sh)."""
        return self.run(HERE / "cluster_node.sh", name, *action)

    def tried(self, *command: str | Path) -> subprocess.CompletedProcess:
        """Runs a command on the login node."""
        return subprocess.run(
            [str(word) for word in command],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def run(self, *command: str | Path) -> str:
        """What a command that must do well prints on the login node."""
        done = self.tried(*command)
        assert done.returncode == 0, f"{shlex.join(map(str, command))}: {done.stderr}{done.stdout}"
        return done.stdout

    def submit(self, *options: str, script: Path, arguments: tuple[str, ...] = ()) -> Job:
        """Gives a script to sbatch."""
        printed = self.run("sbatch", "--parsable", *options, script, *arguments)
        return self.job(printed.strip())

    def job(self, number: str) -> Job:
        """A job by its number."""
        job = Job(self, number, Path())
        job.file = Path(job.told()["StdOut"])
        return job

    def train(self, run: Path, nodes: int, *arguments: str, options: tuple[str, ...] = ()) -> Job:
        """Trains the tiny recipe of a world directory into `run`, a task on each node."""
        sizes = ("--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1")
        return self.submit(
            f"--nodes={nodes}", *sizes, "--time=30", "--signal=B:USR1@60", *options,
            script=TRAIN, arguments=(*arguments, f"output={run}"),
        )  # fmt: skip


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes; a test leaves them up."""
    # Sockets have short names.
    directory = tmp_path_factory.mktemp("s")
    started = Cluster(directory, 3)
    yield started
    started.down()


def final_files(run: Path, steps: int) -> dict[str, str]:
    """Digests of the last step's weights and moments."""
    step = latest_step(run)
    assert step is not None and verify_step(step) == steps
    return {name: sha256_of(step / f"{name}.safetensors") for name in ("trainable", "optimizer")}


def recipe(world: Path) -> tuple[str, ...]:
    return (str(world / "tiny.yaml"), f"training.steps={STEPS}", "checkpoint.every=20")


@pytest.fixture(scope="session")
def quiet(cluster: Cluster, world_directory: Path, tmp_path_factory) -> Path:
    """The run on two nodes that nothing disturbed."""
    run = tmp_path_factory.mktemp("quiet") / "run"
    job = cluster.train(run, 2, "--", *recipe(world_directory))
    assert job.wait() == 0, job.output()
    said = job.output()
    assert f"job {job.number}, start 1, on node[1-2]: ibtrain train" in said
    assert re.search(r"\(ZeRO-3\) on 2 ranks, from the beginning", said)
    assert f"done: step {STEPS}, run directory {run}" in said
    assert "start 2" not in said
    return run
