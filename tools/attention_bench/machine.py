"""What a run is measured on and with."""

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

GIT = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def told_by(*command: str) -> str:
    """The first line that a program prints, or `unknown`."""
    try:
        told = subprocess.run(
            command, capture_output=True, text=True, timeout=20, cwd=Path(__file__).parent
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return (told.stdout.strip().splitlines() or ["unknown"])[0]


def hardware(device: torch.device) -> dict[str, Any]:
    """The device's name, driver and size."""
    if device.type != "cuda":
        return {"name": platform.processor() or platform.machine(), "driver": "none"}
    card = torch.cuda.get_device_properties(device)
    asked = "driver_version,power.limit,clocks.max.sm"
    told = told_by("nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader").split(", ")
    return {
        "name": card.name,
        "driver": told[0],
        "power_limit_and_clock": told[1:],
        "multiprocessors": card.multi_processor_count,
        "memory_bytes": card.total_memory,
    }


def versions() -> dict[str, str]:
    """Of torch, CUDA and triton, and of Python."""
    try:
        import triton
    except ImportError:
        triton = None
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "triton": getattr(triton, "__version__", "none"),
        "python": platform.python_version(),
    }
