"""The exact job of a run for a Slurm cluster: what `ibtrain slurm` prints and submits.

slurm/train.sbatch with the cluster's sizes filled in, written into the run directory beside the
resolved recipe, so that the same file can be given to sbatch again.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ibtrain.config import Recipe, RecipeError, dump_recipe
from ibtrain.files import write_whole
from ibtrain.planning.devices import Device, device_named
from ibtrain.planning.plan import Cluster, Plan, make_plan
from ibtrain.sharding import AUTO, micro_batches_per_step

# In an installed package they lie inside it, in a checkout beside it.
SCRIPTS = next(
    directory
    for directory in (Path(__file__).parent / "slurm", Path(__file__).parents[1] / "slurm")
    if directory.is_dir()
)
JOB, RECIPE, PLAN = "train.sbatch", "job.yaml", "plan.json"
_BESIDE = ("environment.sh", "functions.sh")
_SECONDS = 60
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True)
class Request:
    """What is asked of the cluster.

    Raises:
        ValueError: when a size or a time cannot be.
    """

    nodes: int
    gpus_per_node: int
    time: str = "24:00:00"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    cpus_per_gpu: int = 8
    lead: int = 600
    """Seconds before the limit at which the ranks are asked to save."""
    max_restarts: int = 100
    container: str | None = None
    node_cache: str | None = None

    def __post_init__(self) -> None:
        for name in ("nodes", "gpus_per_node", "cpus_per_gpu", "lead"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; there must be at least 1")
        if seconds_of(self.time) <= self.lead:
            raise ValueError(
                f"the time is {self.time}, and the ranks are asked to save {self.lead} s before it "
                "is over: give more time, or a smaller --lead"
            )


def seconds_of(time: str) -> int:
    """Seconds of a time as Slurm writes it: minutes, h:m:s, d-h, d-h:m, d-h:m:s.

    Raises:
        ValueError: when it is none.
    """
    found = _TIME.fullmatch(time.strip())
    if found is None:
        raise ValueError(
            f"the time {time!r} is not of Slurm's form: minutes, hours:minutes:seconds or "
            "days-hours:minutes:seconds"
        )
    days, *numbers = (int(number) if number else None for number in found.groups())
    given = [number for number in numbers if number is not None]
    from_hours = days is not None or len(given) == 3
    units = (3600, 60, 1) if from_hours else (60, 1, 0)
    return (days or 0) * 86_400 + sum(n * unit for n, unit in zip(given, units, strict=False))


@dataclass(frozen=True)
class Job:
    """A job that can be submitted."""

    directory: Path
    """The run directory."""
    script: str
    recipe: Recipe
    sharding: str
    because: str
    plan: Plan | None

    def document(self) -> dict[str, Any]:
        """For people's programs."""
        return {
            "script": str(self.directory / JOB),
            "sharding": self.sharding,
            "because": self.because,
            "plan": None if self.plan is None else asdict(self.plan),
        }

    def write(self) -> Path:
        """Writes the script and what it needs into the run directory; returns the script."""
        directory = self.directory
        directory.mkdir(parents=True, exist_ok=True)
        for name in _BESIDE:
            write_whole(directory / name, (SCRIPTS / name).read_bytes())
        write_whole(directory / RECIPE, dump_recipe(self.recipe))
        plan = {"sharding": self.sharding, "because": self.because, "plan": self.document()["plan"]}
        write_whole(directory / PLAN, json.dumps(plan, indent=2) + "\n")
        write_whole(directory / JOB, self.script)
        return directory / JOB


def make_job(recipe: Recipe, request: Request, gpu: str | None = None) -> Job:
    """The job of a run, once it is seen that it can be.

    Args:
        recipe: the run.
        request: what is asked of the cluster.
        gpu: the GPUs' name; `none` for nodes without; default: what Slurm says of them.

    Raises:
        ValueError: when the partition, the GPUs or the sizes cannot be had, or nothing fits.
    """
    device = _device(request, gpu)
    micro_batches_per_step(recipe, request.nodes * request.gpus_per_node)
    sharding, because, plan = _placed(recipe, request, device)
    placed = recipe.model_copy(update={"sharding": sharding})
    directory = recipe.output.absolute()
    return Job(directory, _script(request, directory), placed, sharding, because, plan)


def _placed(
    recipe: Recipe, request: Request, device: Device | None
) -> tuple[str, str, Plan | None]:
    """The sharding of a run, why, and the plan."""
    if device is None:
        because = "there are no GPUs to plan for"
        return ("zero2" if recipe.sharding == AUTO else recipe.sharding), because, None
    plan = make_plan(recipe, Cluster(request.nodes, request.gpus_per_node, device))
    if not plan.chosen:
        nodes = f"{request.nodes} node{'' if request.nodes == 1 else 's'}"
        raise RecipeError(f"{recipe.name} on {nodes}: {plan.because}")
    if recipe.sharding == AUTO:
        return plan.chosen, plan.because, plan
    (own,) = (choice for choice in plan.choices if choice.sharding == recipe.sharding)
    if not own.fits:
        needs, has = own.memory_bytes_per_gpu["total"], device.memory
        raise RecipeError(
            f"{recipe.name} with sharding={recipe.sharding} needs {needs / 2**30:.1f} GiB of each "
            f"GPU's {has / 2**30:.1f}; take sharding={plan.chosen}, or sharding=auto"
        )
    if recipe.sharding == plan.chosen:
        return recipe.sharding, plan.because, plan
    because = f"the recipe names it; the planner would take {plan.chosen}: {plan.because}"
    return recipe.sharding, because, plan


def _device(request: Request, gpu: str | None) -> Device | None:
    """The nodes' GPUs, once it is seen that the partition has nodes with so many."""
    if gpu == "none":
        return None
    try:
        rows = _told("sinfo", "--noheader", "--format=%R|%G").splitlines()
    except RuntimeError as error:
        if gpu is None:
            raise ValueError(
                f"Slurm cannot be asked for its GPUs ({error}); name them with --gpu (h100, "
                "a100-80g, ..., or none)"
            ) from error
        return device_named(gpu)
    pairs = {tuple(row.strip().split("|", 1)) for row in rows if "|" in row}
    partitions = sorted({partition for partition, _ in pairs})
    if request.partition is not None and request.partition not in partitions:
        raise ValueError(
            f"there is no partition {request.partition!r}; there are {', '.join(partitions)}"
        )
    wanted = request.partition or _default_partition()
    gpus = [
        (count, kind)
        for partition, features in pairs
        if wanted in (None, partition)
        for kind, count in _gpus_in(features)
    ]
    most = max((count for count, _ in gpus), default=0)
    if most < request.gpus_per_node:
        where = f"of partition {wanted} " if wanted else ""
        raise ValueError(
            f"{request.gpus_per_node} GPUs a node are asked for, and no node {where}has more than "
            f"{most}; ask for --gpus-per-node {most or 1} and more nodes, or another --partition"
        )
    if gpu is not None:
        return device_named(gpu)
    kinds = sorted({kind for count, kind in gpus if count >= request.gpus_per_node and kind})
    if len(kinds) != 1:
        found = f"has {' and '.join(kinds)}" if kinds else "does not say which GPUs it has"
        raise ValueError(f"the cluster {found}; name one with --gpu (and ask by --constraint)")
    return device_named(kinds[0])


def _gpus_in(features: str) -> list[tuple[str, int]]:
    """[("h100", 8)] of Slurm's "gpu:h100:8(S:0-1),tmp:1"; a kind may be missing."""
    found = re.findall(r"(?:^|,)gpu(?::([A-Za-z][\w.-]*))?:(\d+)", features)
    return [(kind, int(count)) for kind, count in found]


def _default_partition() -> str | None:
    rows = _told("sinfo", "--noheader", "--format=%P").split()
    return next((row.rstrip("*") for row in rows if row.endswith("*")), None)


def _told(*command: str) -> str:
    """What a command of Slurm's prints.

    Raises:
        RuntimeError: when it does not answer.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except FileNotFoundError as error:
        raise RuntimeError(f"there is no {command[0]} here") from error
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{command[0]} does not answer within {_SECONDS} s") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise RuntimeError(f"{command[0]} does not answer: {said[0]}")
    return done.stdout


def _script(request: Request, directory: Path) -> str:
    """slurm/train.sbatch with its options replaced and its arguments filled in."""
    options: dict[str, Any] = {
        "nodes": request.nodes,
        "ntasks-per-node": request.gpus_per_node,
        "gpus-per-node": request.gpus_per_node,
        "cpus-per-task": request.cpus_per_gpu,
        "time": request.time,
        "signal": f"B:USR1@{request.lead}",
        "output": _quoted(f"{directory}/%x-%j.out"),
        "chdir": _quoted(str(Path.cwd())),
        "partition": request.partition,
        "account": request.account,
        "qos": request.qos,
        "constraint": request.constraint and _quoted(request.constraint),
    }
    given = {name: value for name, value in options.items() if value is not None}
    lines = (SCRIPTS / JOB).read_text().splitlines()
    kept: list[str] = []
    for line in lines:
        name = re.match(r"#SBATCH --([a-z-]+)", line)
        if line.startswith("set -euo"):
            kept += [f"#SBATCH --{name}={value}" for name, value in given.items()]
            kept += [line, "", *_filled_in(request, directory)]
        elif name and name[1] in given:
            kept.append(f"#SBATCH --{name[1]}={given.pop(name[1])}")
        else:
            kept.append(line)
    return "\n".join(kept) + "\n"


def _filled_in(request: Request, directory: Path) -> Sequence[str]:
    words = ["--max-restarts", str(request.max_restarts)]
    for option, value in (("container", request.container), ("node-cache", request.node_cache)):
        words += [f"--{option}", value] if value else []
    words += ["--", str(directory / RECIPE)]
    return (
        "# Filled in by `ibtrain slurm`; arguments of sbatch are added.",
        f'set -- {shlex.join(words)} "$@"',
        f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"',
        f"export IBTRAIN_SCRIPTS={shlex.quote(str(directory))}",
    )


def _quoted(text: str) -> str:
    return f'"{text}"' if re.search(r"\s", text) else text


def submit(script: Path) -> str:
    """Gives a script to sbatch; returns the job's number.

    Raises:
        ValueError: when sbatch refuses it; says why.
    """
    if shutil.which("sbatch") is None:
        raise ValueError(f"there is no sbatch here; on the cluster's login node: sbatch {script}")
    done = subprocess.run(
        ["sbatch", "--parsable", str(script)], capture_output=True, text=True, timeout=_SECONDS
    )
    if done.returncode:
        said = [line.removeprefix("sbatch: error: ") for line in done.stderr.strip().splitlines()]
        why = "; ".join(said).replace("Batch job submission failed: ", "") or "it says nothing"
        raise ValueError(f"sbatch refuses {script}: {why}")
    return done.stdout.strip().partition(";")[0]
