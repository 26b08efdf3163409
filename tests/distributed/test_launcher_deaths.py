"""What a signal to a launcher, or to one rank of many, leaves: no process, and a run that goes on.

A start takes 15 seconds, so a run meets several signals. With IBTRAIN_ALL_SIGNALS=1 every signal is
sent to every launcher and to a rank.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ibtrain.run_directory import latest_step, step_of
from tests.distributed.conftest import ROOT, Zygote
from tests.distributed.test_resume import command, final_files

STEPS = 120
BIN = Path(sys.executable).parent
LAUNCHERS = {
    "deepspeed": [
        *(str(BIN / "deepspeed"), "--no_local_rank", "--num_accelerators", "2"),
        *("--master_port", "PORT", "--module", "ibtrain"),
    ],
    "torchrun": [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2", "-m", "ibtrain"],
}
TERM, INT, USR1, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGKILL
BY_DEFAULT = {
    "deepspeed": [("launcher", TERM), ("launcher", KILL)],
    "torchrun": [("launcher", USR1), ("rank", KILL)],
}
ALL = [(who, sent) for who in ("launcher", "rank") for sent in (TERM, INT, USR1, KILL)]
CASES = dict.fromkeys(LAUNCHERS, ALL) if os.environ.get("IBTRAIN_ALL_SIGNALS") else BY_DEFAULT


@pytest.fixture(scope="module")
def quiet_run(zygote: Zygote, world_directory: Path, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("quiet") / "run"
    steps = f"training.steps={STEPS}"
    zygote.run(2, "tests.distributed.zygote:run_cli", *command(world_directory, run, steps))
    return run


def launched(launcher: str, world: Path, run: Path, log: Path) -> subprocess.Popen:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    # As in a terminal, where nobody has SIGINT ignored.
    words = ["env", "--default-signal=INT"]
    words += [port if word == "PORT" else word for word in LAUNCHERS[launcher]]
    words += command(world, run, f"training.steps={STEPS}")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    with log.open("w") as file:
        return subprocess.Popen(words, env=environment, stdout=file, stderr=file)


def ranks_of(run: Path) -> list[psutil.Process]:
    """Everything that has the run directory on its command line."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(
            f"output={run}" == word for word in process.info["cmdline"] or ()
        ):
            found.append(process)
    return found


def training(run: Path) -> list[psutil.Process]:
    """The ranks alone."""
    launchers = ("launch", "torchrun", "bin/deepspeed")
    return [
        process
        for process in ranks_of(run)
        if not any(word.endswith(launchers) for word in process.cmdline()[:4])
    ]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_no_process_is_left_and_the_same_command_goes_on(
    world_directory: Path, quiet_run: Path, tmp_path: Path, launcher: str
) -> None:
    run = tmp_path / "run"
    for number, (who, sent) in enumerate(CASES[launcher]):
        log = tmp_path / f"{number}-{who}-{sent.name}.log"
        started = launched(launcher, world_directory, run, log)
        end = time.monotonic() + 180
        while log.read_text().count("\nstep ") < 5:
            assert time.monotonic() < end and started.poll() is None, log.read_text()
            time.sleep(0.05)
        ranks = training(run)
        assert len(ranks) == 2, [process.cmdline() for process in ranks_of(run)]
        reported = log.read_text().count("\nstep ")
        before = latest_step(run)
        os.kill(started.pid if who == "launcher" else ranks[1].pid, sent)
        end = time.monotonic() + 30
        while (left := ranks_of(run)) and time.monotonic() < end:
            started.poll()  # or it stays as a zombie
            time.sleep(0.1)
        assert not left, f"{sent.name} to the {who}: {left}\n{log.read_text()}"
        said = log.read_text()
        started.wait()
        print(
            launcher, who, sent.name, started.returncode, f"{30 - (end - time.monotonic()):.1f} s"
        )
        if sent != KILL or who == "launcher":
            assert "interrupted after step" in said, f"{sent.name} to the {who}\n{said}"
            assert step_of(latest_step(run)) >= reported
        else:
            assert latest_step(run) == before or "interrupted" not in said
    log = tmp_path / "end.log"
    assert launched(launcher, world_directory, run, log).wait(300) == 0, log.read_text()
    assert final_files(run, STEPS) == final_files(quiet_run, STEPS)
