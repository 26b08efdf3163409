"""What a machine has, read without judging it: packages, GPUs, tools, memory and limits.

Nothing here raises, waits long, opens a CUDA context or touches the network; what cannot be read
is None or empty. Paths to read are arguments, so that they can be pointed elsewhere.
"""

import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

REQUIREMENTS = Path(__file__).parents[2] / "requirements.txt"
_DEVELOPMENT = "# For `make check`"  # what follows in requirements.txt no run needs
_SECONDS = 5.0  # a driver that hangs is told by its absence
IMPORT_ERRORS = (ImportError, OSError, RuntimeError, AttributeError)
"""What importing a package raises that is missing or damaged."""


@dataclass(frozen=True)
class Gpu:
    """One card: its name, bytes of memory and compute capability."""

    name: str
    memory: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class Torch:
    """What torch says of itself and of the machine; `broken` says why it cannot be imported."""

    version: str | None = None
    cuda: str | None = None
    """The CUDA version that it is built for; None for a CPU build."""
    available: bool = False
    visible: int = 0
    """GPUs that this process may use."""
    nccl: str | None = None
    complaint: str = ""
    """What it said while it looked for GPUs."""
    broken: str = ""


def read_torch() -> Torch:
    """Imports torch and asks for CUDA, which starts the driver and no context."""
    version = installed("torch")
    try:
        import torch
    except IMPORT_ERRORS as error:
        return Torch(version, broken=first_line(error))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available, visible = torch.cuda.is_available(), torch.cuda.device_count()
    numbers: tuple[int, ...] = ()
    if torch.distributed.is_available() and torch.distributed.is_nccl_available():
        numbers = torch.cuda.nccl.version()
    return Torch(
        version,
        torch.version.cuda,
        available,
        visible,
        ".".join(map(str, numbers)) or None,
        first_line(caught[0].message) if caught else "",
    )


def torchvision_error() -> str | None:
    """Why torchvision cannot be imported, mended as the other packages here do; None if it can."""
    try:
        for module in ("ibtrain.torchvision_mend", "torchvision"):
            importlib.import_module(module)
    except IMPORT_ERRORS as error:
        return first_line(error)
    return None


def first_line(said: object) -> str:
    """The first line of a message, for a table."""
    return str(said).strip().partition("\n")[0] or type(said).__name__


def installed(distribution: str) -> str | None:
    """The version of an installed package, which is not imported."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def requirements(file: Path = REQUIREMENTS) -> dict[str, str]:
    """Package to version (`==2.13.0`), of what a run needs: by requirements.txt, or where there is
    none, in an installed package, by what that declares.
    """
    if not file.is_file():
        return _declared()
    wanted = {}
    for line in file.read_text().partition(_DEVELOPMENT)[0].splitlines():
        if found := re.match(r"([A-Za-z0-9][\w.-]*)(\[[^]]*\])?\s*([^#;]*)", line):
            wanted[found[1]] = found[3].strip()
    return wanted


def _declared() -> dict[str, str]:
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("ibtrain") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    wanted = [Requirement(line) for line in lines]
    return {
        one.name: str(one.specifier)
        for one in wanted
        if one.marker is None or one.marker.evaluate({"extra": ""})
    }


def read_gpus(command: str = "nvidia-smi") -> tuple[list[Gpu], str | None]:
    """The machine's cards and their driver's version, from the driver's own tool."""
    query = "--query-gpu=name,memory.total,compute_cap,driver_version"
    try:
        ended = subprocess.run(
            [command, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return [], None
    return parse_gpus(ended.stdout)


def parse_gpus(table: str) -> tuple[list[Gpu], str | None]:
    """The cards in nvidia-smi's table of name, MiB, capability and driver."""
    gpus, driver = [], None
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != 4 or not re.fullmatch(r"\d+\.\d+", cells[2]):
            continue
        major, minor = map(int, cells[2].split("."))
        # A card that shares the host's memory (GB10) has "[N/A]" here.
        memory = int(cells[1]) * 2**20 if cells[1].isdigit() else 0
        gpus.append(Gpu(cells[0], memory, (major, minor)))
        driver = cells[3]
    return gpus, driver


def gpus_of_torch(visible: int) -> list[Gpu]:
    """The cards as torch sees them: where there is no nvidia-smi, as in a small container."""
    import torch

    try:
        found = [torch.cuda.get_device_properties(number) for number in range(visible)]
    except (RuntimeError, AssertionError):
        return []
    return [Gpu(one.name, one.total_memory, (one.major, one.minor)) for one in found]


def on_path(*names: str | None) -> str | None:
    """The first of these programs that is there."""
    # A variable such as CXX may hold arguments after the program.
    programs = [name.split()[0] for name in names if name and name.strip()]
    return next((found for name in programs if (found := shutil.which(name))), None)


def cuda_compiler(environment: Mapping[str, str] = os.environ) -> str | None:
    """nvcc, where torch and DeepSpeed look for it."""
    home = environment.get("CUDA_HOME") or environment.get("CUDA_PATH")
    if home is not None:
        return on_path(str(Path(home) / "bin/nvcc"))
    return on_path("nvcc", "/usr/local/cuda/bin/nvcc")


def host_memory(table: Path = Path("/proc/meminfo")) -> tuple[int, int] | None:
    """Bytes of memory in all, and of those that are free or can be freed."""
    try:
        found = dict(re.findall(r"^(\w+):\s+(\d+) kB", table.read_text(), flags=re.MULTILINE))
        return int(found["MemTotal"]) * 1024, int(found["MemAvailable"]) * 1024
    except (OSError, KeyError):
        return None


def memory_limit(
    membership: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """The lowest memory limit of the control groups that this process is in, in bytes."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    limits = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "-", ""][:3]
        if controllers == "":
            root, name = mounted, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = mounted / "memory", "memory.limit_in_bytes"
        else:
            continue
        # Inside a container the path is the host's, and only the root is there.
        inside = root / path.lstrip("/")
        folders = [inside, *inside.parents]
        for folder in folders[: folders.index(root) + 1]:
            limits += _number(folder / name)
    # Without a limit the first version of control groups has one of nearly 2^63.
    return min((limit for limit in limits if limit < 2**60), default=None)


def _number(file: Path) -> list[int]:
    try:
        text = file.read_text().strip()
    except OSError:
        return []
    return [int(text)] if text.isdigit() else []


def free_bytes(path: Path) -> int | None:
    """Bytes that may still be written at a path."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def total_bytes(path: Path) -> int | None:
    """The size of the file system at a path."""
    try:
        return shutil.disk_usage(path).total
    except OSError:
        return None


def is_there(path: Path) -> bool:
    """Whether there is a file or a directory, as far as one may look."""
    try:
        return path.exists()
    except OSError:
        return False


def existing(path: Path) -> Path:
    """The path, or the nearest directory above it that is there."""
    absolute = path.absolute()
    above = (one for one in (absolute, *absolute.parents) if is_there(one))
    return next(above, Path(absolute.anchor))


def hub_cache(environment: Mapping[str, str] = os.environ) -> Path:
    """Where huggingface_hub keeps models that are named by owner/name."""
    caches = environment.get("XDG_CACHE_HOME", "~/.cache")
    home = environment.get("HF_HOME", f"{caches}/huggingface")
    # Path.expanduser raises for a user without a home, as a container's may be.
    return Path(os.path.expanduser(environment.get("HF_HUB_CACHE", f"{home}/hub")))  # noqa: PTH111
