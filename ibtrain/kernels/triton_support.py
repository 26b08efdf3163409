"""Where Triton's kernels run: the one place that asks whether it is installed, and for what."""

import functools
import importlib.util
import os

import torch

OLDEST_CARD = (8, 0)
"""Ampere: bf16 on tensor cores and asynchronous copies."""


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on any device (`TRITON_INTERPRET=1`).

    It is asked for when a kernel is defined, so this is settled when triton is first imported.
    """
    if torch.compiler.is_compiling():
        # It cannot follow a question to the environment.
        from ibtrain.kernels import triton_support_traced

        answer: bool = triton_support_traced.interpreted()
        return answer
    return _interpreted()


@functools.cache
def _interpreted() -> bool:
    # Importing triton loads a compiler: not for nothing, in every process of a run on a CPU.
    if not os.environ.get("TRITON_INTERPRET") or importlib.util.find_spec("triton") is None:
        return False
    from triton import knobs

    return bool(knobs.runtime.interpret)


_allowed = True


def allow_triton(allowed: bool) -> None:
    """Whether Triton's kernels may run in this process (`kernels: off` in a recipe forbids them).

    For a whole process, because a layer that is computed again in the backward must find what its
    forward found.
    """
    global _allowed  # noqa: PLW0603
    _allowed = allowed


def why_not_on(device: torch.device) -> str:
    """What keeps Triton's kernels from running on `device`; empty when nothing does."""
    # On the meta device nothing runs: there they stand for packed attention, whoever computes it.
    if not _allowed and device.type != "meta":
        return "the recipe forbids them (kernels: off)"
    if torch.compiler.is_compiling():
        from ibtrain.kernels import triton_support_traced

        reason: str = triton_support_traced.why_not_on(device)
        return reason
    return _why_not_on(device)


def triton_runs_on(device: torch.device) -> bool:
    """Whether the kernels run on tensors of `device`."""
    return not why_not_on(device)


@functools.cache
def _why_not_on(device: torch.device) -> str:
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
