"""The Triton kernels of `triton_elementwise` as operators of torch.

Registered with their shapes and gradients, so that torch.compile and activation checkpointing see
through them. They assume checked inputs: the public functions are in `elementwise`.

Shapes: T rows, D width, H query heads, G key heads, K head width, P partial sums.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from ibtrain.kernels.operators import operator
from ibtrain.kernels.triton_elementwise import (
    gated_act_backward_kernel,
    gated_act_forward_kernel,
    gated_act_options,
    norm_options,
    rms_norm_backward_kernel,
    rms_norm_forward_kernel,
    rope_kernel,
    rope_options,
)

_PARTIAL_SUMS = 256
"""Programs that share out the rows where the weight's gradient is summed. A function of the rows
alone, never of the card, so that the order of the additions is the same everywhere."""


def _rows(x: Tensor, width: int) -> Tensor:
    """x as [rows, width] whose columns lie side by side; copied only where it must be."""
    x = x.reshape(-1, width)
    return x if x.stride(1) == 1 else x.contiguous()


@operator("ibtrain::rms_norm")
def rms_norm_op(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The RMS norm of x [..., D]; returns (normed [..., D], rstd [rows])."""
    normed, _, rstd = _norm_forward(x, None, weight, eps)
    return normed, rstd


@operator("ibtrain::add_rms_norm")
def add_rms_norm_op(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The RMS norm of residual + x; returns (normed [..., D], sum [..., D], rstd [rows])."""
    return _norm_forward(x, residual, weight, eps)


def _norm_forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    width = weight.numel()
    x_TD = _rows(x, width)
    residual_TD = x_TD if residual is None else _rows(residual, width)
    normed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = normed if residual is None else torch.empty_like(normed)
    rows = x_TD.shape[0]
    rstd_T = torch.empty(rows, dtype=torch.float32, device=x.device)
    constants, options = norm_options(width)
    if rows:
        with torch.cuda.device_of(x):
            rms_norm_forward_kernel[(rows,)](
                *(x_TD, residual_TD, weight.contiguous(), normed, total, rstd_T),
                *(x_TD.stride(0), residual_TD.stride(0), width, eps),
                ADDS=residual is not None,
                **constants,
                **options,
            )
    return normed, total, rstd_T


@operator("ibtrain::rms_norm_backward")
def rms_norm_backward_op(
    d_normed: Tensor,
    d_total: Tensor | None,
    total: Tensor,
    weight: Tensor,
    rstd: Tensor,
    weight_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """(d_sum [..., D], d_weight); d_weight is [D], or empty unless `weight_gradient`.

    `d_total` is the gradient that reached the sum itself; it is added in.
    """
    width = weight.numel()
    d_normed_TD, total_TD = _rows(d_normed, width), _rows(total, width)
    d_total_TD = d_normed_TD if d_total is None else _rows(d_total, width)
    rows = total_TD.shape[0]
    d_x = torch.empty(total.shape, dtype=total.dtype, device=total.device)
    rows_per_program = triton.cdiv(rows, _PARTIAL_SUMS) if weight_gradient else 1
    programs = triton.cdiv(rows, rows_per_program) if rows else 0
    partial_PD = rstd.new_empty(programs if weight_gradient else 0, width)
    constants, options = norm_options(width, sums=weight_gradient)
    if rows:
        with torch.cuda.device_of(total):
            rms_norm_backward_kernel[(programs,)](
                *(d_normed_TD, d_total_TD, total_TD, weight.contiguous(), rstd, d_x, partial_PD),
                *(d_normed_TD.stride(0), d_total_TD.stride(0), total_TD.stride(0)),
                *(rows, width, rows_per_program),
                ADDS=d_total is not None,
                WEIGHT_GRADIENT=weight_gradient,
                **constants,
                **options,
            )
    d_weight = partial_PD.sum(dim=0).to(weight.dtype) if weight_gradient else weight.new_empty(0)
    return d_x, d_weight


@rms_norm_op.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    rows = x.numel() // weight.shape[0]
    return x.new_empty(x.shape), x.new_empty(rows, dtype=torch.float32)


@add_rms_norm_op.register_fake
def _(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    rows = x.numel() // weight.shape[0]
    rstd_T = x.new_empty(rows, dtype=torch.float32)
    return x.new_empty(x.shape), x.new_empty(x.shape), rstd_T


@rms_norm_backward_op.register_fake
def _(
    d_normed: Tensor,
    d_total: Tensor | None,
    total: Tensor,
    weight: Tensor,
    rstd: Tensor,
    weight_gradient: bool,
) -> tuple[Tensor, Tensor]:
    return total.new_empty(total.shape), weight.new_empty(weight.shape if weight_gradient else 0)


def _save_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    total = inputs[0] if len(output) == 2 else output[1]
    ctx.save_for_backward(total, inputs[-2], output[-1])


def _norm_backward(
    ctx: Any, d_normed: Tensor | None, d_total: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """(d_sum, d_weight) where either output may have received no gradient."""
    if d_normed is None:
        return d_total, None
    weight_gradient = ctx.needs_input_grad[-2]
    total, weight, rstd = ctx.saved_tensors
    d_x, d_weight = rms_norm_backward_op(d_normed, d_total, total, weight, rstd, weight_gradient)
    return d_x, d_weight if weight_gradient else None


def _rms_norm_backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    return (*_norm_backward(ctx, gradients[0], None), None)


def _add_rms_norm_backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    d_x, d_weight = _norm_backward(ctx, gradients[0], gradients[1])
    return d_x, d_x, d_weight, None


rms_norm_op.register_autograd(_rms_norm_backward, _save_norm)
add_rms_norm_op.register_autograd(_add_rms_norm_backward, _save_norm)


@operator("ibtrain::rope")
def rope_op(
    query: Tensor,
    key: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    backward: bool,
) -> tuple[Tensor, Tensor]:
    """Turns query [T, H, K] and key [T, G, K]; with `backward`, their gradients the other way."""
    rows, heads, width = query.shape
    key_heads = key.shape[1]
    query, key, cos, sin = (
        x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, cos, sin)
    )
    query_out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    key_out = torch.empty(key.shape, dtype=key.dtype, device=key.device)
    row_positions = query if positions is None else positions.contiguous()
    constants, options = rope_options(width)
    blocks = sum(triton.cdiv(count, constants["BLOCK_HEADS"]) for count in (heads, key_heads))
    if rows and blocks:
        with torch.cuda.device_of(query):
            rope_kernel[(rows, blocks)](
                *(query, key, cos, sin, row_positions, query_out, key_out),
                *(*query.stride()[:2], *key.stride()[:2], cos.stride(0), sin.stride(0)),
                *(heads, key_heads),
                WITH_POSITIONS=positions is not None,
                BACKWARD=backward,
                **constants,
                **options,
            )
    return query_out, key_out


@rope_op.register_fake
def _(
    query: Tensor,
    key: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    backward: bool,
) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape)


def _save_rope(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, cos, sin, positions, ctx.turned_back = inputs
    ctx.save_for_backward(cos, sin, positions)


def _rope_backward(ctx: Any, d_query: Tensor, d_key: Tensor) -> tuple[Tensor | None, ...]:
    cos, sin, positions = ctx.saved_tensors
    turned = rope_op(d_query, d_key, cos, sin, positions, not ctx.turned_back)
    return (*turned, None, None, None, None)


rope_op.register_autograd(_rope_backward, _save_rope)


@operator("ibtrain::gated_act")
def gated_act_op(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    """act(gate) * up, of any shape [..., D]; kind is one of `Activation`."""
    width = gate.shape[-1]
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if out.numel():
        gate_TD, up_TD = _rows(gate, width), _rows(up, width)
        constants, options = gated_act_options(width)
        with torch.cuda.device_of(gate):
            gated_act_forward_kernel[(gate_TD.shape[0], triton.cdiv(width, constants["BLOCK"]))](
                *(gate_TD, up_TD, out, gate_TD.stride(0), up_TD.stride(0), width),
                KIND=kind,
                **constants,
                **options,
            )
    return out


@operator("ibtrain::gated_act_backward")
def gated_act_backward_op(
    gradient: Tensor, gate: Tensor, up: Tensor, kind: str
) -> tuple[Tensor, Tensor]:
    """(d_gate, d_up), both [..., D]."""
    width = gate.shape[-1]
    d_gate = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    d_up = torch.empty_like(d_gate)
    if d_gate.numel():
        gradient_TD, gate_TD, up_TD = (_rows(x, width) for x in (gradient, gate, up))
        constants, options = gated_act_options(width)
        with torch.cuda.device_of(gate):
            gated_act_backward_kernel[(gate_TD.shape[0], triton.cdiv(width, constants["BLOCK"]))](
                *(gradient_TD, gate_TD, up_TD, d_gate, d_up),
                *(gradient_TD.stride(0), gate_TD.stride(0), up_TD.stride(0), width),
                KIND=kind,
                **constants,
                **options,
            )
    return d_gate, d_up


@gated_act_op.register_fake
def _(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    return gate.new_empty(gate.shape)


@gated_act_backward_op.register_fake
def _(gradient: Tensor, gate: Tensor, up: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), gate.new_empty(gate.shape)


def _save_gated_act(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gate, up, ctx.kind = inputs
    ctx.save_for_backward(gate, up)


def _gated_act_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    gate, up = ctx.saved_tensors
    return (*gated_act_backward_op(gradient, gate, up, ctx.kind), None)


gated_act_op.register_autograd(_gated_act_backward, _save_gated_act)
