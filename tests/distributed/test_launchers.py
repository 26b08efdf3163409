"""Which process this is, by the variables of each launcher; what does not say it is refused."""

import os
import subprocess
import sys
from random import Random

import pytest

from ibtrain.cli import main
from ibtrain.distributed.launchers import LaunchError, find_start, rank_told
from ibtrain.distributed.ranks import Ranks

TORCH = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_ess_base_jobid": "1234",
    "PMIX_RANK": "1",
    "PMIX_NAMESPACE": "1234",
}
HYDRA = {
    "PMI_RANK": "1",
    "PMI_SIZE": "2",
    "MPI_LOCALRANKID": "1",
    "MPI_LOCALNRANKS": "2",
    "PMI_FD": "6",
}
SALLOC = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_JOB_NODELIST": "node[07-08]",
    "SLURM_TASKS_PER_NODE": "2(x2)",
}
SRUN = SALLOC | {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "node[07-08]",
}
MEETING = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in names}


@pytest.mark.parametrize(
    ("environment", "ranks", "address"),
    [
        (TORCH, Ranks(3, 4, 1, 2), "node1"),
        # the deepspeed launcher
        (without(TORCH, "LOCAL_WORLD_SIZE") | {"LOCAL_SIZE": "2"}, Ranks(3, 4, 1, 2), "node1"),
        (OPEN_MPI, Ranks(1, 2, 1, 2), "127.0.0.1"),
        (OPEN_MPI | MEETING | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, Ranks(1, 2, 1, 2), "node1"),
        (HYDRA | MEETING, Ranks(1, 2, 1, 2), "node1"),
        (SRUN, Ranks(3, 4, 1, 2), "node07"),
        (SRUN | {"SLURM_STEP_NODELIST": "a1.x,b"}, Ranks(3, 4, 1, 2), "a1.x"),
        (SRUN | {"SLURM_STEP_NODELIST": "gpu[3,5-7]-ib"}, Ranks(3, 4, 1, 2), "gpu3-ib"),
        # within a task of another launcher, the inner one counts
        (SRUN | TORCH | {"TORCHELASTIC_RUN_ID": "x"}, Ranks(3, 4, 1, 2), "node1"),
        (SRUN | OPEN_MPI, Ranks(1, 2, 1, 2), "127.0.0.1"),
        # RANK and the others exported in the task of an srun, from Slurm's own
        (SRUN | TORCH, Ranks(3, 4, 1, 2), "node1"),
    ],
)
def test_each_launcher_is_read(environment: dict[str, str], ranks: Ranks, address: str):
    start = find_start(environment)
    assert (start.ranks, start.address) == (ranks, address)
    assert rank_told(environment) == ranks.rank
    assert find_start(environment) == start  # every process comes to the same port
    assert find_start(start.variables) == start


@pytest.mark.parametrize(
    "environment",
    [
        {},
        SALLOC,  # a shell inside an allocation
        SALLOC | {"SLURM_STEP_ID": "4294967290"},  # the same, as an interactive step
        SALLOC | {"SLURM_STEP_ID": "4294967291"},  # a batch script
        SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
        | {"SLURM_NODEID": "0", "SLURM_STEP_TASKS_PER_NODE": "1"},  # srun --pty bash
        {"WORLD_SIZE": "1"},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
    ],
)  # fmt: skip
def test_alone(environment: dict[str, str]):
    start = find_start(environment)
    assert (start.ranks, start.address) == (Ranks(0, 1, 0, 1), "127.0.0.1")
    assert 1024 <= start.port <= 65_535


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (
            {"RANK": "0"},
            "RANK is 0 and WORLD_SIZE is not set; torchrun or deepspeed sets both: set it, or "
            "unset RANK to train alone",
        ),
        (
            without(TORCH, "MASTER_ADDR"),
            "torchrun or deepspeed started 4 processes and MASTER_ADDR is not set; set it to the "
            "name of the node of rank 0 in every process",
        ),
        (
            without(TORCH, "MASTER_PORT"),
            "MASTER_PORT is not set and torchrun or deepspeed names no job; set it to the same "
            "free port in every process",
        ),
        (
            {"WORLD_SIZE": "4"},
            "WORLD_SIZE is 4 and RANK is not set, so each process would train alone on "
            "everything; start it with a launcher, or set RANK",
        ),
        (
            {"OMPI_COMM_WORLD_SIZE": "2"},
            "OMPI_COMM_WORLD_SIZE is 2 and OMPI_COMM_WORLD_RANK is not set, so each process would "
            "train alone on everything; start it with a launcher, or set OMPI_COMM_WORLD_RANK",
        ),
        (TORCH | {"RANK": "four"}, "RANK is 'four'; it is a whole number from 0 on"),
        (TORCH | {"RANK": "-1"}, "RANK is '-1'; it is a whole number from 0 on"),
        (TORCH | {"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'; it is a whole number from 1 on"),
        (
            TORCH | {"RANK": "4"},
            "RANK is 4 and WORLD_SIZE is 4; ranks count from 0 to 3",
        ),
        (
            TORCH | {"LOCAL_RANK": "2"},
            "LOCAL_RANK is 2 of 2 processes of this node, and WORLD_SIZE is 4; these do not fit",
        ),
        (
            TORCH | {"MASTER_PORT": "70000"},
            "MASTER_PORT is 70000; ports are numbers from 1 to 65535",
        ),
        (
            OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "4"},
            "mpirun (Open MPI) started 4 processes and MASTER_ADDR is not set; set it to the name "
            "of the node of rank 0 in every process",
        ),
        (
            OPEN_MPI | {"WORLD_SIZE": "4"},
            "WORLD_SIZE is 4, but mpirun (Open MPI) started 2; unset WORLD_SIZE",
        ),
        (
            OPEN_MPI | {"RANK": "0", "WORLD_SIZE": "1"},
            "RANK 0 of WORLD_SIZE 1 contradicts mpirun (Open MPI), which started this as 1 of 2; "
            "unset RANK and WORLD_SIZE",
        ),
        (
            SRUN | TORCH | {"RANK": "2"},
            "RANK 2 of WORLD_SIZE 4 contradicts srun, which started this as 3 of 4; unset RANK "
            "and WORLD_SIZE",
        ),
        (
            {"PMIX_RANK": "1", "PMIX_NAMESPACE": "x"},
            "PMIX_RANK is 1, but nothing says of how many; set RANK, WORLD_SIZE, LOCAL_RANK, "
            "MASTER_ADDR and MASTER_PORT in every process",
        ),
        (
            SRUN | {"SLURM_STEP_TASKS_PER_NODE": "2(x"},
            "'2(x' is not of Slurm's form of tasks per node, 2(x3),1",
        ),
        (
            SRUN | {"SLURM_STEP_NODELIST": "[a-"},
            "the first of the nodes '[a-' cannot be read; set MASTER_ADDR to its name",
        ),
    ],
)
def test_what_does_not_say_who_this_is_is_refused(environment: dict[str, str], said: str):
    with pytest.raises(LaunchError) as refused:
        find_start(environment)
    assert str(refused.value) == said


def test_two_jobs_get_two_ports():
    other = SRUN | {"SLURM_JOB_ID": "8"}
    assert find_start(SRUN).port != find_start(other).port


@pytest.mark.parametrize("option", ["--local_rank=0", "--local-rank=0"])
def test_the_option_of_a_launcher_is_named_with_its_remedy(
    option: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        main(["train", "toy", option])
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"ibtrain: error: {option} comes from the launcher: start with `deepspeed "
        "--no_local_rank` or with torchrun, which tell it by LOCAL_RANK"
    )


JOB = """
import torch
from ibtrain.distributed.processes import start_processes
ranks = start_processes()
total = torch.ones(1) * (ranks.rank + 1)
torch.distributed.all_reduce(total)
print(ranks.rank, ranks.world, ranks.local_rank, ranks.local_world, int(total))
"""


def launched(*environments: dict[str, str]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of processes that see these variables and no launcher's else."""
    names = ("RANK", "WORLD_SIZE", "SLURM", "OMPI", "PMI", "MASTER", "LOCAL_")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(names)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", JOB],
            env=clean | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in environments
    ]
    ended = [process.communicate(timeout=120) for process in running]
    return [(process.returncode, *texts) for process, texts in zip(running, ended, strict=True)]


def test_tasks_of_mpirun_and_of_srun_find_each_other():
    """Real processes over gloo, with the variables that the launchers set."""
    job = {"PMIX_NAMESPACE": f"test-{os.getpid()}"}
    mpi = [
        OPEN_MPI | job | {"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_LOCAL_RANK": rank}
        for rank in "01"
    ]
    assert [(code, out) for code, out, _ in launched(*mpi)] == [
        (0, "0 2 0 2 3\n"),
        (0, "1 2 1 2 3\n"),
    ]
    one_node = SRUN | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    one_node |= {"SLURM_NODEID": "0", "SLURM_JOB_ID": str(os.getpid())}
    srun = [one_node | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank} for rank in "01"]
    assert [(code, out) for code, out, _ in launched(*srun)] == [
        (0, "0 2 0 2 3\n"),
        (0, "1 2 1 2 3\n"),
    ]


def test_damaged_variables_end_in_one_sentence():
    """A changing seed; a failure shows it as the last that was printed."""
    count = max(300, int(os.environ.get("IBTRAIN_FUZZ", "0")))
    texts = ("", " ", "-1", "0", "1", "2", "3", "9" * 40, "1.5", "x", "2(x2)", "2(x999999)", "²")
    start = Random().randrange(10**9)
    for seed in range(start, start + count):
        print(seed)
        random = Random(seed)
        whole = random.choice((TORCH, OPEN_MPI, HYDRA, SRUN, SALLOC))
        environment = whole | random.choice(({}, {}, MEETING, TORCH))
        for name in random.sample(sorted(environment), 2):
            environment[name] = random.choice(texts)
        environment.pop(random.choice(sorted(environment)))
        try:
            rank_told(environment)
            start_found = find_start(environment)
            assert 0 <= start_found.ranks.rank < start_found.ranks.world
        except LaunchError as error:
            assert "\n" not in str(error), seed
