"""Which implementation computes an attention: the backends, and the one table that chooses.

Shapes: T packed query rows, S packed key rows, B sequences, H query heads, G key heads,
K head width.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch

from ibtrain.kernels import libraries
from ibtrain.kernels.triton_support import interpreted, why_not_on

ENVIRONMENT = "IBTRAIN_ATTENTION"
"""For debugging: names the backend to use wherever it can."""


class Backend(StrEnum):
    """What can compute an attention."""

    TRITON = "triton"
    """Our own kernels (triton_attention.py): everything that `varlen_attention` offers."""
    TORCH_VARLEN = "torch_varlen"
    """torch's own FlashAttention 2 over packed rows; no bias, no dropout."""
    FLASH = "flash"
    """The flash-attn package, where it is installed; no bias."""
    SDPA = "sdpa"
    """torch's scaled_dot_product_attention, padded: on the CPU, and where nothing else runs."""


@dataclass(frozen=True)
class AttentionKind:
    """What an attention needs; the choice depends on nothing else."""

    device: torch.device
    dtype: torch.dtype
    head_width: int
    causal: bool = False
    bias: bool = False
    dropout: bool = False

    def __str__(self) -> str:
        switches = [name for name in ("causal", "bias", "dropout") if getattr(self, name)]
        dtype = str(self.dtype).removeprefix("torch.")
        return ", ".join([f"head width {self.head_width}", dtype, *switches])


@dataclass(frozen=True)
class Rule:
    """For the attentions that `holds` is true of: the backends, best first, and why so."""

    holds: Callable[[AttentionKind], bool]
    backends: tuple[Backend, ...]
    because: str


TRITON_WIDTHS = (64, 80, 88, 96, 128)
"""Head widths of this model family and near it: T5 and the Q-Former 64, EVA-ViT-g 88, Llama 128."""
TOWER_WIDTHS = (80, 88, 96)


def _compiled(kind: AttentionKind) -> bool:
    """Whether Triton's kernel for `kind` is among those that tools/compile_gate.py reads."""
    if kind.head_width in TOWER_WIDTHS:
        return not kind.causal and not kind.bias
    return kind.head_width in TRITON_WIDTHS


# The first rule that holds decides, and of its backends the first that can. Ratios are those of
# docs/benchmarks/2026-11-27-h100-80gb-hbm3.md; the flash-attn package was not there.
TABLE = (
    Rule(
        lambda kind: kind.device.type == "meta",
        (Backend.TRITON, Backend.SDPA),
        "nothing is computed, and packed kernels all keep what Triton's keep",
    ),
    Rule(
        lambda kind: kind.device.type == "cpu" and not interpreted(),
        (Backend.SDPA,),
        "nothing else runs on a CPU",
    ),
    Rule(
        lambda kind: interpreted(),
        (Backend.TRITON, Backend.SDPA),
        "Triton's interpreter is on (TRITON_INTERPRET=1): its kernels are what is looked at",
    ),
    Rule(
        lambda kind: not _compiled(kind),
        (Backend.FLASH, Backend.TORCH_VARLEN, Backend.SDPA),
        "no model of this family has such heads: what Triton makes of them was never looked at",
    ),
    Rule(
        lambda kind: kind.bias,
        (Backend.TRITON, Backend.SDPA),
        "of libraries FlexAttention alone takes a bias by distance, without dropout and, on a CPU, "
        "without a backward",
    ),
    Rule(
        lambda kind: kind.dtype not in (torch.bfloat16, torch.float16),
        (Backend.TRITON, Backend.SDPA),
        "the libraries compute in half precision alone",
    ),
    Rule(
        lambda kind: kind.dropout,
        (Backend.TRITON, Backend.FLASH, Backend.SDPA),
        "torch's packed attention has no dropout; padded SDPA drops faster, by 10 us a call on an "
        "H100, but pads what is packed",
    ),
    Rule(
        lambda kind: kind.head_width <= 64 and not kind.causal,
        (Backend.TRITON, Backend.FLASH, Backend.TORCH_VARLEN, Backend.SDPA),
        "on an H100 Triton takes 0.7 to 0.8 of torch's packed attention's time at this width",
    ),
    Rule(
        lambda kind: kind.causal,
        (Backend.TRITON, Backend.FLASH, Backend.TORCH_VARLEN, Backend.SDPA),
        "on an H100 Triton takes 0.75 of torch's packed attention's time forward, and 1.0 with its "
        "backward",
    ),
    Rule(
        lambda kind: True,
        (Backend.FLASH, Backend.TORCH_VARLEN, Backend.TRITON, Backend.SDPA),
        "on an H100 torch's packed attention takes 0.74 of Triton's time at a vision tower's width",
    ),
)


@dataclass(frozen=True)
class Choice:
    """The backend of an attention, why, and what kept better ones from being it."""

    backend: Backend
    because: str
    passed_over: tuple[tuple[Backend, str], ...] = ()


def choose(kind: AttentionKind) -> Choice:
    """The backend for `kind`: the table's, or the one that IBTRAIN_ATTENTION names.

    Raises:
        ValueError: when IBTRAIN_ATTENTION names no backend or one that cannot compute this, or
            no backend can.
    """
    named = os.environ.get(ENVIRONMENT)
    if named:
        return _named(named, kind)
    rule = rule_for(kind)
    passed_over: list[tuple[Backend, str]] = []
    for backend in rule.backends:
        reason = why_not(backend, kind)
        if not reason:
            return Choice(backend, rule.because, tuple(passed_over))
        passed_over.append((backend, reason))
    told = "; ".join(f"{backend}: {reason}" for backend, reason in passed_over)
    raise ValueError(f"no attention backend for {kind} on {kind.device}: {told}")


def rule_for(kind: AttentionKind) -> Rule:
    """The rule of the table that decides for `kind`."""
    return next(rule for rule in TABLE if rule.holds(kind))


def why_not(backend: Backend, kind: AttentionKind) -> str:
    """What keeps `backend` from computing `kind`, or nothing."""
    if backend is Backend.SDPA:
        return ""
    half = kind.dtype in (torch.bfloat16, torch.float16)
    if backend is Backend.TRITON:
        if kind.dtype == torch.float64:
            return "float64 is not among its types"
        if kind.head_width % 8 or not 8 <= kind.head_width <= 128:
            return _width(kind, 128)
        return why_not_on(kind.device)
    if kind.bias:
        return "it takes no bias"
    if backend is Backend.TORCH_VARLEN and kind.dropout:
        return "it has no dropout"
    if not half:
        return f"it does not compute in {str(kind.dtype).removeprefix('torch.')}"
    if kind.head_width % 8 or kind.head_width > 256:
        return _width(kind, 256)
    return libraries.why_not(backend.value, kind.device)


def _width(kind: AttentionKind, widest: int) -> str:
    return f"its heads are multiples of 8 up to {widest} wide, not {kind.head_width}"


def _named(name: str, kind: AttentionKind) -> Choice:
    if name not in list(Backend):
        raise ValueError(f"{ENVIRONMENT} is {name!r}; the backends are {', '.join(Backend)}")
    backend = Backend(name)
    if kind.device.type == "meta" and backend in (Backend.FLASH, Backend.TORCH_VARLEN):
        backend = Backend.TRITON  # the libraries cannot be asked there, and keep what it keeps
    reason = why_not(backend, kind)
    if reason:
        raise ValueError(
            f"{ENVIRONMENT} asks for {name}, which cannot compute an attention of {kind} on "
            f"{kind.device}: {reason}. Unset it, and the best one that can is chosen"
        )
    return Choice(backend, f"{ENVIRONMENT} names it")
