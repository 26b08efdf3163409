"""What the environment and a device say of Triton, asked once in a process."""

import functools
import importlib.util
import os

import torch

OLDEST_CARD = (8, 0)
"""Ampere: bf16 on tensor cores and asynchronous copies."""


@functools.cache
def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels."""
    # Importing triton loads a compiler: not for nothing, in every process of a run on a CPU.
    if not os.environ.get("TRITON_INTERPRET") or importlib.util.find_spec("triton") is None:
        return False
    from triton import knobs

    return bool(knobs.runtime.interpret)


@functools.cache
def why_not_on(device: torch.device) -> str:
    """What keeps Triton's kernels from running on `device`; empty when nothing does."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if interpreted() or device.type == "meta":  # there shapes are all that is asked for
        return ""
    if device.type != "cuda":
        return f"Triton does not run on {device.type}"
    if torch.version.cuda is None:
        return "this is not a CUDA build of torch"
    card = torch.cuda.get_device_capability(device)
    if card < OLDEST_CARD:
        return f"the card is of compute capability {card[0]}.{card[1]}, and 8.0 is the oldest"
    return ""
