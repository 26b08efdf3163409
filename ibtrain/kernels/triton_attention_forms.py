"""What is known when an attention kernel is compiled, and the blocks that are chosen for it."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Form:
    """What is known when a kernel is compiled."""

    dtype: torch.dtype
    head_width: int
    causal: bool
    bias: bool
    dropout: bool

    @property
    def padded_width(self) -> int:
        """The head width as a power of two, at least the 16 that a tensor core takes."""
        return max(16, 1 << (self.head_width - 1).bit_length())


@dataclass(frozen=True)
class Blocks:
    """Rows of queries (M) and keys (N) in a block, and the launch's options."""

    M: int
    N: int
    num_warps: int
    num_stages: int

    def options(self) -> dict[str, int]:
        """What Triton takes beside the arguments."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


# Chosen by tools/compile_gate.py: the largest blocks that hardly spill on sm_80 and sm_90. wgmma
# takes 64 rows for every four warps.


def forward_blocks(form: Form) -> Blocks:
    """The blocks of the forward: M rows are held, N keys are passed by."""
    if form.dtype == torch.float32:
        return Blocks(16, 16, 4, 2)
    return Blocks(128, 32, 8, 3) if form.dropout else Blocks(128, 64, 8, 3)


def backward_key_blocks(form: Form) -> Blocks:
    """The blocks of the keys' and values' gradients: N rows are held, M are passed by."""
    if form.dtype == torch.float32:
        return Blocks(16, 32, 4, 2)
    if form.padded_width > 64:
        return Blocks(64, 64, 8, 2)
    return Blocks(32, 128, 8, 2) if form.dropout else Blocks(64, 128, 8, 2)


def backward_query_blocks(form: Form) -> Blocks:
    """The blocks of the queries' gradient: M rows are held, N are passed by."""
    if form.dtype == torch.float32:
        return Blocks(16, 32, 4, 2)
    if form.padded_width > 64:
        return Blocks(64, 64, 8, 2)
    return Blocks(128, 32, 8, 2) if form.dropout or form.bias else Blocks(128, 64, 8, 2)


def constants(form: Form, blocks: Blocks) -> dict[str, Any]:
    """What a kernel that multiplies is compiled for."""
    return {
        "WIDTH": form.head_width,
        "K": form.padded_width,
        "M": blocks.M,
        "N": blocks.N,
        "CAUSAL": form.causal,
        "BIAS": form.bias,
        "DROPOUT": form.dropout,
    }


def split(form: Form) -> bool:
    """Whether blocks that every row sees whole are passed by in a loop of their own."""
    return form.dtype != torch.float32 and not form.dropout


def delta_rows(form: Form) -> int:
    """Rows in a block of `attention_delta`."""
    return 32 if form.padded_width > 64 else 64
