"""The fused elementwise operations of a language model, and which implementation runs them.

Triton's kernels run on CUDA devices from compute capability 8.0 on (and anywhere under Triton's
interpreter) in bf16, fp16 and fp32; the plain reference runs elsewhere and in fp64.

Shapes: T packed rows, D width, H query heads, G key heads, K head width, P positions.
"""

import torch
from torch import Tensor

from ibtrain.kernels.reference_elementwise import (
    Activation,
    add_rms_norm_reference,
    gated_act_reference,
    rope_reference,
)
from ibtrain.kernels.triton_support import triton_runs_on

WIDEST_NORM = 8192
"""A row of the norm is held in registers; wider rows go to the reference."""

_ACTIVATIONS = tuple(Activation)
"""torch.compile of torch 2.11 cannot go through the enumeration itself."""
_TRITON_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def add_rms_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The residual sum and its RMS norm; returns (normed, sum), both [..., D].

    sum = residual + x; normed = weight * sum / sqrt(mean(sum ** 2) + eps). The weight's gradient is
    computed only where the weight asks for one.

    Args:
        x: [..., D].
        residual: [..., D] as x; None stands for zeros, and sum is then x itself.
        weight: [D].
        eps: added to the mean of squares.

    Raises:
        ValueError: when shapes, dtypes or devices do not belong together.
    """
    named = {"x": x, "weight": weight} | ({} if residual is None else {"residual": residual})
    _check_alike(named)
    if x.dim() == 0 or weight.dim() != 1 or weight.shape[0] != x.shape[-1] or not x.shape[-1]:
        raise ValueError(
            f"x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit: "
            "they must be [..., D] and [D]"
        )
    if residual is not None and residual.shape != x.shape:
        raise ValueError(
            f"x {tuple(x.shape)} and residual {tuple(residual.shape)} must have one shape"
        )
    if eps < 0:
        raise ValueError(f"eps is {eps}; it must not be negative")
    if not _triton_takes(x) or x.shape[-1] > WIDEST_NORM:
        return add_rms_norm_reference(x, residual, weight, eps)
    from ibtrain.kernels import triton_elementwise_operators as operators

    if residual is None:
        normed, _ = operators.rms_norm_op(x, weight, eps)
        return normed, x
    normed, total, _ = operators.add_rms_norm_op(x, residual, weight, eps)
    return normed, total


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x ** 2) + eps) of x [..., D] and weight [D]; see `add_rms_norm`."""
    return add_rms_norm(x, None, weight, eps)[0]


def rope(
    query_THK: Tensor,
    key_TGK: Tensor,
    cos_PK: Tensor,
    sin_PK: Tensor,
    positions_T: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Rotary embedding by halves of packed rows; returns (query, key), both new.

    Channel i < K/2 is turned with channel i + K/2, as in Llama: out = x * cos + (-high, low) * sin.

    Args:
        query_THK: [T, H, K], K even.
        key_TGK: [T, G, K].
        cos_PK: [P, K]; no gradient reaches it.
        sin_PK: [P, K]; no gradient reaches it.
        positions_T: the row of cos and sin for each packed row, integers from 0 to P-1; None where
            row t stands at t.

    Raises:
        ValueError: when shapes, dtypes or devices do not belong together, and on a CPU when a
            position is not in cos (elsewhere, reading positions would wait for the device).
    """
    _check_rope(query_THK, key_TGK, cos_PK, sin_PK, positions_T)
    cos_PK, sin_PK = cos_PK.detach(), sin_PK.detach()
    if not _triton_takes(query_THK):
        return rope_reference(query_THK, key_TGK, cos_PK, sin_PK, positions_T)
    from ibtrain.kernels import triton_elementwise_operators as operators

    query, key = operators.rope_op(query_THK, key_TGK, cos_PK, sin_PK, positions_T, False)
    return query, key


def gated_act(gate: Tensor, up: Tensor, kind: Activation | str) -> Tensor:
    """act(gate) * up, of any one shape [..., D]; the backward computes the activation again.

    Raises:
        ValueError: when `kind` is not one of `Activation`, or the inputs do not belong together.
    """
    if kind not in _ACTIVATIONS:
        known = ", ".join(Activation)
        raise ValueError(f"the activation {str(kind)!r} is not known; there are {known}")
    _check_alike({"gate": gate, "up": up})
    if gate.shape != up.shape or gate.dim() == 0:
        raise ValueError(
            f"gate {tuple(gate.shape)} and up {tuple(up.shape)} must have one shape [..., D]"
        )
    if not _triton_takes(gate):
        return gated_act_reference(gate, up, kind)
    from ibtrain.kernels import triton_elementwise_operators as operators

    out: Tensor = operators.gated_act_op(gate, up, str(kind))
    return out


def _triton_takes(x: Tensor) -> bool:
    return x.dtype in _TRITON_DTYPES and triton_runs_on(x.device)


def _check_alike(named: dict[str, Tensor]) -> None:
    """One floating dtype and one device for all."""
    first = next(iter(named.values()))
    if not first.dtype.is_floating_point or any(x.dtype != first.dtype for x in named.values()):
        found = ", ".join(f"{name} {x.dtype}" for name, x in named.items())
        raise ValueError(f"one floating dtype is needed for all; got {found}")
    if any(x.device != first.device for x in named.values()):
        found = ", ".join(f"{name} on {x.device}" for name, x in named.items())
        raise ValueError(f"one device is needed for all; got {found}")


def _check_rope(
    query_THK: Tensor, key_TGK: Tensor, cos_PK: Tensor, sin_PK: Tensor, positions_T: Tensor | None
) -> None:
    _check_alike({"query": query_THK, "key": key_TGK, "cos": cos_PK, "sin": sin_PK})
    query, key, cos = tuple(query_THK.shape), tuple(key_TGK.shape), tuple(cos_PK.shape)
    if len(query) != 3 or len(key) != 3 or query[0] != key[0] or query[2] != key[2]:
        raise ValueError(
            f"query {query} and key {key} do not fit: they must be [T, H, K] and [T, G, K]"
        )
    if query[2] % 2 or query[2] == 0:
        raise ValueError(f"the head width is {query[2]}; halves are turned, so it must be even")
    if len(cos) != 2 or cos[1] != query[2] or sin_PK.shape != cos_PK.shape:
        raise ValueError(
            f"cos {cos} and sin {tuple(sin_PK.shape)} must both be [P, {query[2]}], "
            "of the head width of query and key"
        )
    if positions_T is None:
        if cos[0] < query[0]:
            raise ValueError(f"cos has {cos[0]} positions, fewer than the {query[0]} rows")
        return
    if positions_T.shape != query_THK.shape[:1] or positions_T.device != query_THK.device:
        raise ValueError(
            f"positions are {tuple(positions_T.shape)} on {positions_T.device}; there must be one "
            f"for each of the {query[0]} rows, on {query_THK.device}"
        )
    if positions_T.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"positions are {positions_T.dtype}; they must be int32 or int64")
    if positions_T.device.type == "cpu" and query[0] and not torch.compiler.is_compiling():
        low, high = (int(x) for x in positions_T.aminmax())
        if low < 0 or high >= cos[0]:
            raise ValueError(f"positions go from {low} to {high}, and cos holds {cos[0]}")
