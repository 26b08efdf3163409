"""slurm/train.sbatch on a real Slurm, unmodified: whatever happens to the job, the end is the same.

A start takes some 15 seconds, so the run that everything is compared with is made once, and one job
meets several mishaps.
"""

import json
import re
import time
from pathlib import Path

import pytest

from ibtrain.run_directory import latest_step
from tests.slurm.conftest import STEPS, Cluster, final_files, recipe


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return [line["loss"] for line in lines]


def test_mishap_after_mishap(
    cluster: Cluster, world_directory: Path, quiet: Path, tmp_path: Path
) -> None:
    """Time limit, scancel --signal, a node that loses power, a job of higher priority."""
    run = tmp_path / "run"
    options = ("--time=60", "--signal=B:USR1@600")
    job = cluster.train(run, 2, *recipe(world_directory), options=options)
    job.wait_for_start(1)
    cluster.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=5")  # less than 600 s off
    stopped(cluster, "node2", "STOP")  # limits are looked at every 30 s: no step until then
    told = f"job {job.number} is asked to stop; its tasks hear of it"
    job.wait_until(lambda: told in job.output())
    stopped(cluster, "node2", "CONT")
    job.begin_again(1)
    assert re.search(r"interrupted after step [1-9]\d*, run directory", job.output())
    assert f"job {job.number}: ibtrain train ended with exit code 3" in job.output()
    cluster.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")

    job.wait_for_start(2)
    cluster.run("scancel", "--signal=USR1", job.number)
    job.begin_again(2)
    assert job.output().count("ended with exit code 3") == 2

    job.wait_for_start(3)
    cluster.node("node2", "crash")
    job.begin_again(3)

    job.wait_for_start(4)
    assert f"job {job.number}, start 4, on node[1,3]" in job.output()
    hurry = cluster.submit(
        *("--partition=urgent", "--nodes=2", "--exclusive", "--time=1"), script=sleeping(tmp_path)
    )
    job.begin_again(4)
    assert hurry.wait() == 0
    cluster.up()  # node2 boots again
    assert job.wait() == 0, job.output()
    assert f"job {job.number}, start 5, on " in job.output()
    assert final_files(run, STEPS) == final_files(quiet, STEPS)
    assert losses(run) == losses(quiet)


def stopped(cluster: Cluster, node: str, signal: str) -> None:
    """Stops a node's ranks where they are, or lets them go on."""
    cluster.node(node, "exec", "pkill", f"-{signal}", "-f", "ibtrain train")


def sleeping(directory: Path) -> Path:
    script = directory / "short.sh"
    script.write_text("#!/bin/sh\nsleep 1\n")
    return script


def test_of_all_incarnations_the_last_goes_on(
    cluster: Cluster, world_directory: Path, tmp_path: Path
) -> None:
    """Tasks outlive their node's daemon while the job begins again; then comes another job."""
    run = tmp_path / "run"
    arguments = (str(world_directory / "tiny.yaml"), "training.steps=100000", "checkpoint.every=20")
    job = cluster.train(run, 1, *arguments)
    job.wait_for_start(1)
    (node,) = re.findall(r"start 1, on (node\d)", job.output())
    cluster.node(node, "kill-slurmd")
    job.begin_again(1)
    before = latest_step(run)
    job.wait_until(lambda: latest_step(run) != before)  # the tasks run on, and train
    assert processes_on(cluster, node) == 1
    job.wait_for_start(2)  # on another node
    assert re.search(r"going on from step-\d+", job.output())
    # Slurm has given its output up, so what it says is seen with the next.
    job.wait_until(lambda: processes_on(cluster, node) == 0, 60)

    other = cluster.train(run, 1, *arguments)
    assert job.wait() == 1
    by = re.escape(f"{run} was taken over by a later start (job {other.number}, restart 0, ")
    assert re.search(rf"^ibtrain: {by}process \d+ on node\d\), which", job.output(), re.MULTILINE)
    assert job.told()["JobState"] == "FAILED" and job.told()["Restarts"] == "1"
    other.wait_for_start(1)
    cluster.run("scancel", other.number)
    other.wait()
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))  # one history
    cluster.node(node, "start-slurmd")
    cluster.up()


def processes_on(cluster: Cluster, node: str) -> int:
    """Training processes in a node's namespace."""
    found = cluster.node(node, "exec", "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    return found.count("-m ibtrain train")


def test_a_crash_and_a_wrong_request_end_the_job(
    cluster: Cluster, world_directory: Path, tmp_path: Path
) -> None:
    tiny = str(world_directory / "tiny.yaml")
    wrong = cluster.train(tmp_path / "wrong", 1, tiny, "training.global_batch=9x")
    crash = cluster.train(tmp_path / "crash", 1, tiny, "training.learning_rate=1e30")
    none = cluster.train(tmp_path, 1, "--")
    assert none.wait() == 2 or "no recipe is given" in none.output()
    assert wrong.wait() == 2 and crash.wait() == 1, wrong.output() + crash.output()
    assert "training.global_batch" in wrong.output() and "gradient norm" in crash.output()
    for job in (wrong, crash):
        assert "start 2" not in job.output() and job.told()["Restarts"] == "0"


def test_restarts_are_bounded_and_a_cancelled_job_stays_so(
    cluster: Cluster, world_directory: Path, tmp_path: Path
) -> None:
    tiny = (str(world_directory / "tiny.yaml"), "training.steps=100000")
    bounded = cluster.train(tmp_path / "bounded", 1, "--max-restarts", "0", "--", *tiny)
    bounded.wait_for_start(1)
    cluster.run("scancel", "--signal=USR1", "--batch", bounded.number)
    assert bounded.wait() == 3
    assert "began again 0 times, as often as it may (--max-restarts)" in bounded.output()
    assert latest_step(tmp_path / "bounded") is not None
    cancelled = cluster.train(tmp_path / "cancelled", 1, *tiny)
    cancelled.wait_for_start(1)
    cluster.run("scancel", cancelled.number)
    cancelled.wait()
    time.sleep(2)
    assert cancelled.told()["JobState"] == "CANCELLED", cancelled.output()
    assert "start 2" not in cancelled.output()


@pytest.mark.parametrize("signals", [("TERM", "INT", "USR1", "KILL")])
def test_a_signal_to_srun_leaves_no_process(
    cluster: Cluster, world_directory: Path, quiet: Path, tmp_path: Path, signals: tuple[str, ...]
) -> None:
    """The same command goes on, to the same end."""
    run = tmp_path / "run"
    arguments = ("--max-restarts", "0", *recipe(world_directory))
    for sent in signals:
        job = cluster.train(run, 2, *arguments, options=("--nodelist=node1,node2",))
        job.wait_for_start(1)
        begin = time.monotonic()
        cluster.node("node1", "exec", "pkill", f"-{sent}", "-x", "srun")
        job.wait_until(
            lambda: not sum(processes_on(cluster, node) for node in ("node1", "node2")), 30
        )
        print(f"SIG{sent} to srun: {time.monotonic() - begin:.1f} s, exit code {job.wait()}")
        # srun itself kills its tasks at SIGTERM and SIGINT, and hands SIGUSR1 on.
        assert (job.wait() == 3) == (sent == "USR1"), job.output()
    job = cluster.train(run, 2, *arguments)
    assert job.wait() == 0, job.output()
    assert final_files(run, STEPS) == final_files(quiet, STEPS)


def test_two_nodes_one_node_two_nodes(
    cluster: Cluster, world_directory: Path, quiet: Path, tmp_path: Path
) -> None:
    """The same samples in the same global batches, to rounding."""
    run = tmp_path / "run"
    more = ("training.micro_batch=3",)
    for nodes, sharding in ((2, "zero3"), (1, "zero2"), (2, "zero1")):
        last = nodes == 2 and sharding == "zero1"
        arguments = (*recipe(world_directory), *more, f"sharding={sharding}")
        job = cluster.train(run, nodes, "--max-restarts", "0", *arguments)
        if not last:
            job.wait_for_start(1)
            cluster.run("scancel", "--signal=USR1", job.number)
        assert job.wait() == (0 if last else 3), job.output()
        assert f"on {nodes} rank" in job.output()
    assert losses(run) == pytest.approx(losses(quiet), rel=2e-3)
