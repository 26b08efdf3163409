"""The rows of `ibtrain check`: from what was found on a machine to a verdict and a remedy.

Each function is given the facts, so that it can be tried with those of any machine. Sizes are in
bytes.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from ibtrain.check.facts import Gpu, Torch

GIB = 2**30
OLDEST_PYTHON = (3, 11)
LEAST_CAPABILITY = (8, 0)
LEAST_OPEN_FILES = 4096
LEAST_SHARED_MEMORY = GIB
LEAST_MEMORY = 8 * GIB
LEAST_DISK = 10 * GIB
_UNLIMITED = 2**60


@dataclass(frozen=True)
class Finding:
    """One row: OK, WARN (works, but), or MISS (something will not work).

    Args:
        name: what was looked at.
        status: the verdict.
        found: what is there.
        remedy: what to do about it; empty only when it is OK.
    """

    name: str
    status: Literal["OK", "WARN", "MISS"]
    found: str
    remedy: str = ""

    def __post_init__(self) -> None:
        assert bool(self.remedy) == (self.status != "OK"), self


def python(version: tuple[int, int, int]) -> Finding:
    """The interpreter."""
    found = ".".join(map(str, version))
    if version[:2] >= OLDEST_PYTHON:
        return Finding("python", "OK", found)
    return Finding("python", "MISS", found, "make the environment again: make PYTHON=python3.11")


def package(name: str, wanted: str, version: str | None) -> Finding:
    """One package against what is required of it (`>=4.57,<5`)."""
    install = f"pip install {shlex.quote(name + wanted)}"
    if version is None:
        return Finding(name, "MISS", "not installed", install)
    if not meets(version, wanted):
        return Finding(name, "WARN", f"{version}; tested with {wanted}", install)
    return Finding(name, "OK", version)


def torch_package(wanted: str, torch: Torch) -> Finding:
    """torch itself: there, importable, of the tested version."""
    if torch.version is not None and torch.broken:
        return Finding(
            "torch",
            "MISS",
            f"{torch.version} cannot be imported: {torch.broken}",
            f"pip install --force-reinstall {shlex.quote('torch' + wanted)}",
        )
    row = package("torch", wanted, torch.version)
    build = f"CUDA {torch.cuda} build" if torch.cuda else "CPU build"
    found = row.found if torch.version is None else f"{row.found} ({build})"
    return Finding(row.name, row.status, found, row.remedy)


def torchvision(wanted: str, version: str | None, error: str | None) -> Finding:
    """torchvision: transformers and peft import it."""
    if version is not None and error is not None:
        return Finding(
            "torchvision",
            "MISS",
            f"{version} cannot be imported: {error}",
            f"install the one that belongs to this torch: pip install 'torchvision{wanted}'",
        )
    return package("torchvision", wanted, version)


def triton(wanted: str, version: str | None, gpus: int) -> Finding:
    """triton, which torch's GPU builds bring along."""
    row = package("triton", wanted, version)
    if version is not None or gpus:
        return row
    why = f"on a CPU only the kernels' tests need it: {row.remedy}"
    return Finding("triton", "WARN", row.found, why)


def other_packages(versions: dict[str, str | None], wanted: dict[str, str]) -> Finding:
    """What else is required, in one row."""
    missing = [name for name, version in versions.items() if version is None]
    odd = [name for name, found in versions.items() if found and not meets(found, wanted[name])]
    fix = "pip install " + " ".join(shlex.quote(name + wanted[name]) for name in missing + odd)
    if missing:
        return Finding("other packages", "MISS", f"not installed: {', '.join(missing)}", fix)
    if odd:
        named = ", ".join(f"{name} {versions[name]}" for name in odd)
        return Finding("other packages", "WARN", f"not as required: {named}", fix)
    return Finding("other packages", "OK", f"{len(versions)} more, as required")


def meets(version: str, wanted: str) -> bool:
    """Whether a version satisfies `==`, `>=` and `<` clauses; a local part (+cpu) is no matter."""
    compare = {
        "==": lambda have, want: have[: len(want)] == want,
        ">=": lambda have, want: have >= want,
        "<": lambda have, want: have[: len(want)] < want,
    }
    return all(
        compare[sign](_release(version), _release(number))
        for sign, number in re.findall(r"(==|>=|<)\s*([\w.]+)", wanted)
    )


def _release(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def gpus(found: Sequence[Gpu], torch: Torch) -> Finding:
    """The cards: how many, which, and whether they compute in bf16."""
    if not found:
        return Finding("GPUs", "WARN", "none", "training runs on the CPU: only toy models")
    kinds = [(len(list(same)), gpu) for gpu, same in groupby(found)]
    shown = "; ".join(
        f"{count} x {gpu.name}, {gib(gpu.memory) if gpu.memory else 'memory of the host'}, "
        f"capability {gpu.capability[0]}.{gpu.capability[1]}"
        for count, gpu in kinds
    )
    if torch.available and torch.visible < len(found):
        shown += f"; {torch.visible} of them visible to this process"
    if min(gpu.capability for gpu in found) < LEAST_CAPABILITY:
        return Finding(
            "GPUs",
            "WARN",
            shown,
            "below capability 8.0 there is no bf16 and there are no fused kernels: set "
            "model.precision=fp32, which takes twice the memory, or use newer cards",
        )
    return Finding("GPUs", "OK", shown)


def cuda(torch: Torch, count: int, driver: str | None) -> Finding:
    """Whether driver, cards and torch's build go together; `count` cards are in the machine."""
    shown = f"driver {driver or 'not known'}, torch for CUDA {torch.cuda or '(none: CPU build)'}"
    if torch.broken:
        return Finding("CUDA", "WARN", f"driver {driver or 'not known'}", "install torch first")
    if torch.available or (torch.cuda is None and not count):
        return Finding("CUDA", "OK", shown if count else "no GPU, CPU build of torch")
    if torch.cuda is None:
        fix = (
            "the registry's torch is a CUDA build: pip install --force-reinstall torch=="
            + (torch.version or "").partition("+")[0]
        )
        return Finding("CUDA", "MISS", f"{count} GPUs, but a CPU build of torch", fix)
    said = f": {torch.complaint}" if torch.complaint else ""
    if not count:
        fix = (
            "as on a login node; where there should be GPUs, start the container with them "
            "(docker run --gpus all) or ask the scheduler for them (--gpus)"
        )
        return Finding("CUDA", "WARN", f"torch for CUDA {torch.cuda}, and no GPU{said}", fix)
    fix = (
        f"bring the driver to one for CUDA {torch.cuda}, or install a torch built for an older "
        "CUDA; and see that CUDA_VISIBLE_DEVICES is not empty"
    )
    return Finding("CUDA", "MISS", f"{shown}; no GPU can be used{said}", fix)


def nccl(version: str | None, count: int) -> Finding:
    """What ranks exchange tensors by."""
    if not count:
        return Finding("NCCL", "OK", "not needed without a GPU (ranks use gloo)")
    if version is None:
        fix = "install a build of torch that has it: pip install --force-reinstall torch"
        return Finding("NCCL", "MISS", "not in this build of torch", fix)
    return Finding("NCCL", "OK", version)


def build_tool(name: str, path: str | None, operators: Sequence[str], install: str) -> Finding:
    """What DeepSpeed builds its operators with on first use.

    Args:
        name: of the tool.
        path: where it is.
        operators: what the recipe's sharding makes DeepSpeed build.
        install: how one gets it.
    """
    if path is not None:
        return Finding(name, "OK", path)
    if operators:
        needed = f"the recipe's sharding builds {' and '.join(operators)} on first use"
        return Finding(name, "MISS", "not found", f"{needed}: {install}")
    return Finding(
        name,
        "WARN",
        "not found",
        "none of the shipped recipes builds an operator of DeepSpeed; a sharding file of your own "
        f"with offload to NVMe or quantized exchange does. To have it: {install}",
    )


def c_compiler(path: str | None, count: int) -> Finding:
    """What Triton compiles the start of each kernel with, on a GPU."""
    if path is not None or not count:
        return Finding("C compiler", "OK", path or "not needed without a GPU")
    why = "Triton's kernels need one to start: apt install build-essential, or name one in CC"
    return Finding("C compiler", "WARN", "not found", why)


def slurm(sbatch: str | None, srun: str | None, job: str | None) -> Finding:
    """Whether a scheduler is here."""
    if job is not None:
        return Finding("Slurm", "OK", f"inside the allocation {job}")
    if sbatch is not None and srun is not None:
        return Finding("Slurm", "OK", f"{sbatch}, {srun}")
    why = (
        "several machines are reached from a cluster's login node; on one machine it is not "
        "needed: deepspeed --no_local_rank --module ibtrain train RECIPE"
    )
    return Finding("Slurm", "WARN", "no sbatch and srun on the PATH", why)


def shared_memory(size: int | None) -> Finding:
    """/dev/shm, through which NCCL's ranks of one machine talk (data reading does not use it)."""
    if size is not None and size >= LEAST_SHARED_MEMORY:
        return Finding("shared memory", "OK", f"{gib(size)} in /dev/shm")
    found = "no /dev/shm" if size is None else f"{gib(size)} in /dev/shm"
    why = (
        "NCCL fails with little of it as soon as several GPUs of a machine work together: "
        "docker run --shm-size=8g (or --ipc=host), or mount -o remount,size=8G /dev/shm"
    )
    return Finding("shared memory", "WARN", found, why)


def open_files(soft: int, hard: int) -> Finding:
    """The limit of open files; a negative one is none."""
    if soft < 0 or soft >= LEAST_OPEN_FILES:
        return Finding("open files", "OK", "unlimited" if soft < 0 else f"{soft:,}")
    reachable = hard < 0 or hard >= LEAST_OPEN_FILES
    how = (
        f"ulimit -n {65536 if hard < 0 else min(hard, 65536)}, in the shell that starts the run"
        if reachable
        else "docker run --ulimit nofile=65536, or nofile in /etc/security/limits.conf"
    )
    why = f"a reading process keeps up to 256 shards of each dataset open: {how}"
    return Finding("open files", "WARN", f"{soft:,}", why)


def locked_memory(soft: int, count: int) -> Finding | None:
    """Memory that may be locked, for RDMA network cards; only where several GPUs are."""
    if count < 2:
        return None
    if soft < 0 or soft >= _UNLIMITED:
        return Finding("locked memory", "OK", "unlimited")
    why = (
        "NCCL over InfiniBand or RoCE locks memory (one machine needs none): ulimit -l unlimited, "
        "docker run --ulimit memlock=-1, or PropagateResourceLimitsExcept=MEMLOCK in slurm.conf"
    )
    return Finding("locked memory", "WARN", gib(soft), why)


def host_memory(total_and_available: tuple[int, int] | None, limit: int | None) -> Finding:
    """The machine's memory, and what its control group lets this process have of it."""
    if total_and_available is None and limit is None:
        why = "/proc/meminfo cannot be read; see that there are 8 GiB for each machine of a run"
        return Finding("host memory", "WARN", "not known", why)
    total, available = total_and_available or (limit or 0, limit or 0)
    shown = f"{gib(total)}, {gib(available)} available"
    if limit is not None and limit < total:
        shown += f"; limited to {gib(limit)} here"
    if min(total, limit or total) >= LEAST_MEMORY:
        return Finding("host memory", "OK", shown)
    why = (
        "a process of a run takes half a GiB before it has read anything, and weights and shards "
        "pass through the same memory: give it 8 GiB (docker run --memory, sbatch --mem)"
    )
    return Finding("host memory", "WARN", shown, why)


def disk(name: str, path: Path, free: int | None, remedy: str) -> Finding:
    """Space on the disk of a directory that is written to."""
    if free is None:
        return Finding(name, "WARN", f"{path}: its free space cannot be read", remedy)
    shown = f"{gib(free)} free at {path}"
    if free >= LEAST_DISK:
        return Finding(name, "OK", shown)
    return Finding(name, "WARN", shown, remedy)


def hub_cache(path: Path, writable: bool) -> Finding:
    """Where models that are named by owner/name lie."""
    if writable:
        return Finding("hub cache", "OK", str(path))
    why = "models cannot be downloaded there: export HF_HOME=a directory with space"
    return Finding("hub cache", "WARN", f"{path} cannot be written", why)


def gib(size: int) -> str:
    """A size in GiB, with a digit after the point where it is small; in KiB where it is tiny."""
    if size < GIB // 10:
        return f"{size / 1024:,.0f} KiB"
    return f"{size / GIB:,.0f} GiB" if size >= 10 * GIB else f"{size / GIB:,.1f} GiB"
