"""Which process of how many this is, by the variables of whatever started it.

One table of launchers, the innermost first: a torchrun within an srun task counts, not the srun.
Nothing here joins a process group, which processes.py does, or imports torch.
"""

import os
import re
import socket
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

_FIRST_SPECIAL_STEP = 0xFFFFFFF0  # of Slurm: a batch script, an interactive shell; not srun's tasks
_FIRST_PORT, _PORTS = 20_000, 10_000  # below those that systems give to outgoing connections


class LaunchError(ValueError):
    """Variables of a launcher that do not say which process this is; names them and the remedy."""


@dataclass(frozen=True)
class Ranks:
    """This process among all, and among those of its node, whose ranks follow one another."""

    rank: int
    world: int
    local_rank: int
    local_world: int


@dataclass(frozen=True)
class Launcher:
    """The variables of one launcher. Of several names the first that is set counts.

    `job` are those that are equal in all its tasks and differ between jobs.
    """

    name: str
    rank: str
    world: tuple[str, ...]
    local_rank: tuple[str, ...]
    local_world: tuple[str, ...]
    job: tuple[str, ...] = ()


TORCH = Launcher(
    "torchrun or deepspeed", "RANK", ("WORLD_SIZE",), ("LOCAL_RANK",),
    ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"),  # the deepspeed launcher sets the latter only
)  # fmt: skip
SLURM = Launcher(
    "srun", "SLURM_PROCID", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), ("SLURM_LOCALID",),
    ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"),
    # A job that begins again keeps its id, and tasks of a node that was lost may run on meanwhile.
    ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID"),
)  # fmt: skip
LAUNCHERS = (
    TORCH,
    Launcher(
        "mpirun (Open MPI)", "OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_SIZE",),
        ("OMPI_COMM_WORLD_LOCAL_RANK",), ("OMPI_COMM_WORLD_LOCAL_SIZE",),
        ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_ess_jobid"),
    ),
    Launcher(
        "mpirun (MVAPICH)", "MV2_COMM_WORLD_RANK", ("MV2_COMM_WORLD_SIZE",),
        ("MV2_COMM_WORLD_LOCAL_RANK",), ("MV2_COMM_WORLD_LOCAL_SIZE",), ("MPIRUN_ID",),
    ),
    Launcher(
        "mpiexec (PMI: MPICH, Intel MPI)", "PMI_RANK", ("PMI_SIZE",),
        ("MPI_LOCALRANKID", "PMI_LOCAL_RANK"), ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"),
        ("PMI_PORT", "PMI_KVS", "PMI_ID_KVS"),
    ),
    SLURM,
)  # fmt: skip


@dataclass(frozen=True)
class Start:
    """This process among all, and where the first of them is met."""

    ranks: Ranks
    address: str
    port: int

    @property
    def variables(self) -> dict[str, str]:
        """As torch.distributed, DeepSpeed and Streaming read them."""
        return {
            "RANK": str(self.ranks.rank),
            "WORLD_SIZE": str(self.ranks.world),
            "LOCAL_RANK": str(self.ranks.local_rank),
            "LOCAL_WORLD_SIZE": str(self.ranks.local_world),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def find_start(environment: Mapping[str, str] = os.environ) -> Start:
    """Reads the variables of the launcher that started this process; alone where there is none.

    Raises:
        LaunchError: when they are incomplete, contradict each other, or are no numbers.
    """
    own = _launcher(environment)
    if own is None:
        _refuse_half_told(environment)
        return Start(Ranks(0, 1, 0, 1), "127.0.0.1", _free_port())
    ranks = _ranks(own, environment)
    _refuse_contradictions(own, ranks, environment)
    return Start(ranks, *_meeting_point(own, ranks, environment))


def rank_told(environment: Mapping[str, str] = os.environ) -> int:
    """This process' rank as far as its launcher tells it; 0 where that cannot be read."""
    own = _launcher(environment)
    text = "" if own is None else environment[own.rank]
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher started this process."""
    return _launcher(environment) is not None


def _launcher(environment: Mapping[str, str]) -> Launcher | None:
    return next((one for one in LAUNCHERS if _started_by(one, environment)), None)


def _started_by(launcher: Launcher, environment: Mapping[str, str]) -> bool:
    if launcher is not SLURM:
        return launcher.rank in environment
    # A batch script and a shell inside an allocation have Slurm's variables, too.
    step = environment.get("SLURM_STEP_ID", "")
    started = re.fullmatch(r"[0-9]{1,10}", step) is not None and int(step) < _FIRST_SPECIAL_STEP
    return started and launcher.rank in environment


def _refuse_half_told(environment: Mapping[str, str]) -> None:
    """Refuses what tells of several processes and not which of them this is."""
    for launcher in LAUNCHERS[:-1]:
        name = next((name for name in launcher.world if name in environment), None)
        if name is not None and _number(environment, name, 1) > 1:
            raise LaunchError(
                f"{name} is {environment[name]} and {launcher.rank} is not set, so each process "
                f"would train alone on everything; start it with a launcher, or set {launcher.rank}"
            )
    if "PMIX_RANK" in environment and "PMIX_NAMESPACE" in environment:
        raise LaunchError(
            f"PMIX_RANK is {environment['PMIX_RANK']}, but nothing says of how many; set RANK, "
            "WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT in every process"
        )


def _ranks(launcher: Launcher, environment: Mapping[str, str]) -> Ranks:
    world_name = _first_set(launcher.world, environment)
    if world_name is None:
        raise LaunchError(
            f"{launcher.rank} is {environment[launcher.rank]} and {launcher.world[0]} is not set; "
            f"{launcher.name} sets both: set it, or unset {launcher.rank} to train alone"
        )
    world = _number(environment, world_name, 1)
    rank = _number(environment, launcher.rank, 0)
    if rank >= world:
        raise LaunchError(
            f"{launcher.rank} is {rank} and {world_name} is {world}; ranks count from 0 to "
            f"{world - 1}"
        )
    local_name = _first_set(launcher.local_rank, environment)
    local_rank = 0 if local_name is None else _number(environment, local_name, 0)
    local_world = _local_world(launcher, environment, local_rank)
    if (local_name is not None and local_rank >= local_world) or local_world > world:
        raise LaunchError(
            f"{local_name or launcher.local_rank[0]} is {local_rank} of {local_world} processes of "
            f"this node, and {world_name} is {world}; these do not fit"
        )
    return Ranks(rank, world, local_rank, local_world)


def _local_world(launcher: Launcher, environment: Mapping[str, str], local_rank: int) -> int:
    name = _first_set(launcher.local_world, environment)
    if name is None:
        return local_rank + 1 if local_rank else 1
    if launcher is not SLURM:
        return _number(environment, name, 1)
    counts = _tasks_per_node(environment[name])
    node = _number(environment, "SLURM_NODEID", 0) if "SLURM_NODEID" in environment else 0
    if node >= len(counts):
        raise LaunchError(
            f"SLURM_NODEID is {node}, but {name} is {environment[name]!r}, which is of "
            f"{len(counts)} nodes; start the tasks with srun"
        )
    return counts[node]


def _tasks_per_node(text: str) -> list[int]:
    """[2, 2, 1] of Slurm's "2(x2),1"."""
    counts: list[int] = []
    for entry in text.split(","):
        found = re.fullmatch(r"([1-9]\d{0,5})(?:\(x([1-9]\d{0,5})\))?", entry)
        if found is None:
            raise LaunchError(f"{text[:80]!r} is not of Slurm's form of tasks per node, 2(x3),1")
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def _refuse_contradictions(own: Launcher, ranks: Ranks, environment: Mapping[str, str]) -> None:
    """Refuses variables of two launchers of which neither can have started the other.

    A launcher that runs within a task of another makes one process of it or more, and numbers them
    as it likes. Variables that were set by hand, or left from before, must be those of the tasks.
    """
    nested = "TORCHELASTIC_RUN_ID" in environment or "CROSS_SIZE" in environment
    if own is TORCH and not nested:
        for other in LAUNCHERS[1:]:
            if not _started_by(other, environment) or _first_set(other.world, environment) is None:
                continue
            told = _ranks(other, environment)
            if told.world > 1 and (told.rank, told.world) != (ranks.rank, ranks.world):
                raise LaunchError(
                    f"RANK {ranks.rank} of WORLD_SIZE {ranks.world} contradicts {other.name}, "
                    f"which started this as {told.rank} of {told.world}; unset RANK and WORLD_SIZE"
                )
    elif own is not TORCH and "WORLD_SIZE" in environment:
        world = _number(environment, "WORLD_SIZE", 1)
        if world != ranks.world:
            raise LaunchError(
                f"WORLD_SIZE is {world}, but {own.name} started {ranks.world}; unset WORLD_SIZE"
            )


def _meeting_point(
    launcher: Launcher, ranks: Ranks, environment: Mapping[str, str]
) -> tuple[str, int]:
    """Address and port where the processes meet."""
    address, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT")
    number = None if port is None else _number(environment, "MASTER_PORT", 1)
    if number is not None and number > 65_535:
        raise LaunchError(f"MASTER_PORT is {number}; ports are numbers from 1 to 65535")
    if ranks.world == 1:
        return address or "127.0.0.1", number or _free_port()
    if not address:
        address = _first_address(launcher, ranks, environment)
    if number is None:
        number = _port_of_job(launcher, environment)
    return address, number


def _first_address(launcher: Launcher, ranks: Ranks, environment: Mapping[str, str]) -> str:
    """Where rank 0 runs, as far as the launcher tells."""
    if launcher is not TORCH and ranks.local_world == ranks.world:
        return "127.0.0.1"
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if launcher is SLURM and nodes:
        return _first_node(nodes)
    raise LaunchError(
        f"{launcher.name} started {ranks.world} processes and MASTER_ADDR is not set; set it to "
        "the name of the node of rank 0 in every process"
    )


def _port_of_job(launcher: Launcher, environment: Mapping[str, str]) -> int:
    job = [environment[name] for name in launcher.job if name in environment]
    if not job:
        raise LaunchError(
            f"MASTER_PORT is not set and {launcher.name} names no job; set it to the same free "
            "port in every process"
        )
    # Two jobs of a node get two ports, all processes of a job the same.
    return _FIRST_PORT + zlib.crc32(".".join(job).encode()) % _PORTS


def _first_node(nodes: str) -> str:
    """node01 of Slurm's "node[01-03,7],login"."""
    found = re.match(r"([A-Za-z0-9._-]+)(?:\[([0-9]+)[^\]]*\]([A-Za-z0-9._-]*))?(?=,|$)", nodes)
    if found is None:
        raise LaunchError(
            f"the first of the nodes {nodes[:80]!r} cannot be read; set MASTER_ADDR to its name"
        )
    return found[1] + (found[2] or "") + (found[3] or "")


def _first_set(names: tuple[str, ...], environment: Mapping[str, str]) -> str | None:
    return next((name for name in names if name in environment), None)


def _number(environment: Mapping[str, str], name: str, least: int) -> int:
    text = environment[name].strip()
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < least:
        raise LaunchError(f"{name} is {text[:80]!r}; it is a whole number from {least} on")
    return int(text)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
