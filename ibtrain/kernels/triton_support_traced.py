"""What triton_environment.py answers, for code under torch.compile, which cannot follow a question
to the environment.

A file of its own because the decorator imports torch's whole tracer, a second that only those who
compile should wait for.
"""

import torch

from ibtrain.kernels import triton_environment


@torch.compiler.assume_constant_result
def interpreted() -> bool:
    """Asked once, while tracing."""
    return triton_environment.interpreted()


@torch.compiler.assume_constant_result
def why_not_on(device: torch.device) -> str:
    """Asked once, while tracing."""
    return triton_environment.why_not_on(device)
