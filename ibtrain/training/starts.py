"""RUN/starts.jsonl: one line for each start of a run, so that a restart can be seen afterwards."""

import json
import logging
import os
import platform
import socket
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ibtrain import __version__
from ibtrain.distributed.ranks import Ranks
from ibtrain.fencing import Incarnation
from ibtrain.run_directory import STARTS

logger = logging.getLogger(__name__)
_LIBRARIES = ("torch", "deepspeed", "transformers", "triton", "peft", "numpy")


def record_start(incarnation: Incarnation, step: int, ranks: Ranks, device: torch.device) -> None:
    """Appends the line of this start; that it cannot be written is a warning, never a failure.

    Args:
        incarnation: which holds the run directory.
        step: the last step that was done before, 0 at the beginning.
        ranks: this process and how many there are.
        device: what it trains on.
    """
    line = {
        "step": step,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "world_size": ranks.world,
        "versions": _versions(),
        "environment": _environment(ranks, device),
    }
    file = incarnation.run / STARTS
    try:
        incarnation.append(
            file, ("\n" * _ends_half_written(file) + json.dumps(line) + "\n").encode()
        )
    except OSError as error:
        logger.warning("this start is not noted in %s (%s); training goes on", STARTS, error)


def _ends_half_written(file: Path) -> bool:
    """Whether a kill has left half a line at the end."""
    if not file.is_file() or not file.stat().st_size:
        return False
    with file.open("rb") as opened:
        opened.seek(-1, os.SEEK_END)
        return opened.read(1) != b"\n"


def _versions() -> dict[str, str]:
    found = {"ibtrain": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _environment(ranks: Ranks, device: torch.device) -> dict[str, Any]:
    """What the run runs on; nothing that is secret or that names files."""
    found: dict[str, Any] = {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "processes on this host": ranks.local_world,
        "processor threads": os.cpu_count(),
        "launcher": _launcher(),
        "device": device.type,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "device memory": f"{properties.total_memory / 2**30:.1f} GiB",
            "CUDA": torch.version.cuda,
        }
    if "SLURM_JOB_ID" in os.environ:
        found["Slurm job"] = os.environ["SLURM_JOB_ID"]
        found["Slurm restarts"] = os.environ.get("SLURM_RESTART_COUNT", "0")
    return found


def _launcher() -> str:
    """What started this process, by the variables that it alone sets."""
    names = {"TORCHELASTIC_RUN_ID": "torchrun", "CROSS_RANK": "deepspeed", "SLURM_STEP_ID": "srun"}
    return next((name for variable, name in names.items() if variable in os.environ), "none")
