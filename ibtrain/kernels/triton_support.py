"""Where Triton's kernels run: the one module that asks whether it is installed, and for what."""

import torch

from ibtrain.kernels import triton_environment
from ibtrain.kernels.triton_environment import OLDEST_CARD

__all__ = ["OLDEST_CARD", "allow_triton", "interpreted", "triton_runs_on", "why_not_on"]


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on any device (`TRITON_INTERPRET=1`).

    It is asked for when a kernel is defined, so this is settled when triton is first imported.
    """
    if torch.compiler.is_compiling():
        # It cannot follow a question to the environment.
        from ibtrain.kernels import triton_support_traced

        answer: bool = triton_support_traced.interpreted()
        return answer
    return triton_environment.interpreted()


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
    return triton_environment.why_not_on(device)


def triton_runs_on(device: torch.device) -> bool:
    """Whether the kernels run on tensors of `device`."""
    return not why_not_on(device)
