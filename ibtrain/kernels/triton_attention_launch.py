"""How the attention kernels are launched, and as what torch knows them.

Two custom operators, so that torch.compile and activation checkpointing see them as one call each:
`ibtrain::varlen_attention` (output and the rows' softmax denominators) and its backward.

Shapes: T packed query rows, S packed key rows, B sequences, H query heads, G key heads,
K head width, R the reach of the bias.
"""

from typing import Any

import torch
from torch import Tensor

from ibtrain.kernels.operators import operator
from ibtrain.kernels.triton_attention import attention_forward
from ibtrain.kernels.triton_attention_backward import (
    attention_backward_key,
    attention_backward_query,
    attention_delta,
)
from ibtrain.kernels.triton_attention_forms import (
    Form,
    backward_key_blocks,
    backward_query_blocks,
    constants,
    delta_rows,
    forward_blocks,
    split,
)


def _form(query: Tensor, causal: bool, rel_bias: Tensor | None, dropout_p: float) -> Form:
    return Form(query.dtype, query.shape[-1], causal, rel_bias is not None, dropout_p > 0)


def _heads_side_by_side(rows: Tensor) -> Tensor:
    """[T, H, K] whose heads lie K apart; a copy where they do not. Rows may be any distance apart
    (a slice of a fused projection is taken as it is).
    """
    return rows if rows.stride()[1:] == (rows.shape[-1], 1) else rows.contiguous()


def _dropout(dropout_p: float) -> dict[str, Any]:
    """Philox words of 31 bits below the threshold are dropped, the rest made larger."""
    return {
        "threshold": min(round(dropout_p * 2**31), 2**31 - 1),
        "kept_scale": 1 / (1 - dropout_p),
    }


@operator("ibtrain::varlen_attention")
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_query: Tensor,
    cu_key: Tensor,
    max_query: int,
    max_key: int,
    causal: bool,
    scale: float,
    rel_bias: Tensor | None,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Output [T, H, K] and the base-2 log of each row's softmax denominator [H, T], in fp32.

    As `ibtrain.kernels.varlen_attention`, which checks everything; `seed` [1] int64 is needed with
    dropout.
    """
    query, key, value = (_heads_side_by_side(rows) for rows in (query, key, value))
    rows, heads, _ = query.shape
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    log_totals = query.new_empty((heads, rows), dtype=torch.float32)
    form = _form(query, causal, rel_bias, dropout_p)
    blocks = forward_blocks(form)
    grid = (-(-max_query // blocks.M), heads, cu_query.numel() - 1)
    if 0 not in grid:
        with torch.cuda.device_of(query):
            attention_forward[grid](
                *(query, key, value, rel_bias, seed, cu_query, cu_key, out, log_totals),
                *(query.stride(0), key.stride(0), value.stride(0), out.stride(0)),
                packed_rows=rows,
                group=heads // key.shape[1],
                scale=scale,
                reach=0 if rel_bias is None else rel_bias.shape[1] // 2,
                **_dropout(dropout_p),
                **constants(form, blocks),
                SPLIT=split(form),
                **blocks.options(),
            )
    return out, log_totals


@operator("ibtrain::varlen_attention_backward")
def attention_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_query: Tensor,
    cu_key: Tensor,
    out: Tensor,
    log_totals: Tensor,
    max_query: int,
    max_key: int,
    causal: bool,
    scale: float,
    rel_bias: Tensor | None,
    dropout_p: float,
    seed: Tensor | None,
    bias_gradient_wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and of the bias (of no rows unless wanted)."""
    query, key, value, gradient = (
        _heads_side_by_side(rows) for rows in (query, key, value, gradient)
    )
    rows, heads, width = query.shape
    group = heads // key.shape[1]
    query_gradient = torch.empty_like(query, memory_format=torch.contiguous_format)
    # Of every query head; those of a group are added up at the end, in fp32.
    dtype = key.dtype if group == 1 else torch.float32
    key_gradient, value_gradient = (
        key.new_empty((key.shape[0], heads, width), dtype=dtype) for _ in range(2)
    )
    bias_gradient = _bias_gradient(query, rel_bias, bias_gradient_wanted)
    delta = torch.empty_like(log_totals)
    form = _form(query, causal, rel_bias, dropout_p)
    inputs = (query, key, value, rel_bias, seed, cu_query, cu_key, gradient, log_totals, delta)
    strides = (query.stride(0), key.stride(0), value.stride(0), gradient.stride(0))
    shared = {
        "packed_rows": rows,
        "group": group,
        "scale": scale,
        "reach": 0 if rel_bias is None else rel_bias.shape[1] // 2,
        **_dropout(dropout_p),
    }
    with torch.cuda.device_of(query):
        if rows and heads:
            block = delta_rows(form)
            attention_delta[(-(-rows // block), heads)](
                *(out, gradient, delta, out.stride(0), gradient.stride(0), rows),
                WIDTH=form.head_width,
                K=form.padded_width,
                M=block,
            )
        blocks = backward_query_blocks(form)  # first: it mends `delta`
        grid = (-(-max_query // blocks.M), heads, cu_query.numel() - 1)
        if 0 not in grid:
            attention_backward_query[grid](
                *(*inputs, query_gradient, bias_gradient if bias_gradient_wanted else None),
                *(*strides, query_gradient.stride(0)),
                **shared,
                **constants(form, blocks),
                SPLIT=split(form),
                BIAS_GRADIENT=bias_gradient_wanted,
                **blocks.options(),
            )
        blocks = backward_key_blocks(form)
        grid = (-(-max_key // blocks.N), heads, cu_key.numel() - 1)
        if 0 not in grid:
            attention_backward_key[grid](
                *(*inputs, key_gradient, value_gradient, *strides, key_gradient.stride(0)),
                **shared,
                **constants(form, blocks),
                **blocks.options(),
            )
    if group > 1:
        key_gradient, value_gradient = (
            each.unflatten(1, (-1, group)).sum(2).to(key.dtype)
            for each in (key_gradient, value_gradient)
        )
    return query_gradient, key_gradient, value_gradient, bias_gradient


def _bias_gradient(query: Tensor, rel_bias: Tensor | None, wanted: bool) -> Tensor:
    if rel_bias is None or not wanted:
        return query.new_empty((0,), dtype=torch.float32)
    return torch.zeros_like(rel_bias, memory_format=torch.contiguous_format)


@attention.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    log_totals = query.new_empty((query.shape[1], query.shape[0]), dtype=torch.float32)
    return torch.empty_like(query, memory_format=torch.contiguous_format), log_totals


@attention_backward.register_fake
def _(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *others: Any) -> Any:
    rel_bias, wanted = others[-4], others[-1]
    gradients = (
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for tensor in (query, key, value)
    )
    return (*gradients, _bias_gradient(query, rel_bias, wanted))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, cu_query, cu_key, max_query, max_key, causal, scale = inputs[:9]
    rel_bias, dropout_p, seed = inputs[9:]
    ctx.save_for_backward(query, key, value, cu_query, cu_key, *output, rel_bias, seed)
    ctx.set_materialize_grads(False)
    ctx.numbers = (max_query, max_key, causal, scale, dropout_p)


def _backward(context: Any, gradient: Tensor | None, _: Tensor | None) -> Any:
    if gradient is None:
        return (None,) * 12
    *tensors, rel_bias, seed = context.saved_tensors
    max_query, max_key, causal, scale, dropout_p = context.numbers
    wanted = bool(context.needs_input_grad[9])
    *gradients, bias_gradient = attention_backward(
        *(gradient, *tensors, max_query, max_key, causal, scale, rel_bias, dropout_p, seed, wanted)
    )
    nothing = (None,) * 6
    return (*gradients, *nothing, bias_gradient if wanted else None, None, None)


attention.register_autograd(_backward, _keep)
