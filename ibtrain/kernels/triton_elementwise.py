"""Fused elementwise kernels: residual sum with RMS norm, rotary embedding, gated activation.

Each reads its inputs once and writes its outputs once: at the widths of a language model these
are bound by memory alone. Arithmetic is fp32; roundings to the tensors' dtype stand where
`reference_elementwise` has them. Nothing is added atomically, so a repeated run is bitwise equal.

Shapes: T rows, D width, H query heads, G key heads, K head width, P positions.
"""

from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ibtrain.kernels.reference_elementwise import Activation
from ibtrain.kernels.triton_support import interpreted
from ibtrain.kernels.variants import Variant

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WIDEST_NORM = 8192
"""A row of the norm is held in registers; wider rows go to the reference."""

_PARTIAL_SUMS = 256
"""Programs that share out the rows where the weight's gradient is summed. A function of the rows
alone, never of the card, so that the order of the additions is the same everywhere."""

_INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def _rounded(value: tl.tensor, DTYPE: tl.constexpr) -> tl.tensor:
    """An fp32 value as DTYPE can hold it, in fp32."""
    if _INTERPRETED and DTYPE == tl.bfloat16:  # noqa: SIM300
        # The interpreter cuts off where a card rounds to the nearest, ties to even.
        bits = value.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        rounded = bits.to(tl.uint32).to(tl.float32, bitcast=True)
    else:
        rounded = value.to(DTYPE).to(tl.float32)
    return rounded


@triton.jit
def _store(pointers: tl.tensor, value: tl.tensor, mask: tl.tensor) -> None:
    value = _rounded(value, pointers.dtype.element_ty)
    tl.store(pointers, value.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def _load(pointers: tl.tensor, mask: tl.tensor) -> tl.tensor:
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _rms_norm_forward_kernel(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    normed: tl.tensor,
    total: tl.tensor,
    rstd: tl.tensor,
    x_stride: tl.tensor,
    residual_stride: tl.tensor,
    width: tl.tensor,
    eps: tl.tensor,
    ADDS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program a row. Without ADDS `residual` and `total` are not touched."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    value = _load(x + row * x_stride + columns, inside)
    if ADDS:
        value += _load(residual + row * residual_stride + columns, inside)
        value = _rounded(value, total.dtype.element_ty)
        _store(total + row * width + columns, value, inside)
    scale = tl.rsqrt(tl.sum(value * value, axis=0) / width + eps)
    tl.store(rstd + row, scale)
    normalized = _rounded(value * scale, normed.dtype.element_ty)
    _store(normed + row * width + columns, normalized * _load(weight + columns, inside), inside)


@triton.jit
def _rms_norm_backward_kernel(
    d_normed: tl.tensor,
    d_total: tl.tensor,
    total: tl.tensor,
    weight: tl.tensor,
    rstd: tl.tensor,
    d_x: tl.tensor,
    partial: tl.tensor,
    d_normed_stride: tl.tensor,
    d_total_stride: tl.tensor,
    total_stride: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    rows_per_program: tl.tensor,
    ADDS: tl.constexpr,
    WEIGHT_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A program takes `rows_per_program` rows; with WEIGHT_GRADIENT it leaves their part of the
    weight's gradient in its row of `partial`. With ADDS the sum's own gradient is added.
    """
    program = tl.program_id(0).to(tl.int64)
    first = program * rows_per_program
    last = tl.minimum(first + rows_per_program, rows)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    weights = _load(weight + columns, inside)
    d_weight = tl.zeros([BLOCK], dtype=tl.float32)
    for row in range(first, last):
        scale = tl.load(rstd + row)
        normalized = _load(total + row * total_stride + columns, inside) * scale
        gradient = _load(d_normed + row * d_normed_stride + columns, inside)
        if WEIGHT_GRADIENT:
            d_weight += gradient * normalized
        gradient *= weights
        along = tl.sum(gradient * normalized, axis=0) / width
        gradient = scale * (gradient - normalized * along)
        if ADDS:
            gradient += _load(d_total + row * d_total_stride + columns, inside)
        _store(d_x + row * width + columns, gradient, inside)
    if WEIGHT_GRADIENT:
        tl.store(partial + program * width + columns, d_weight, mask=inside)


@triton.jit
def _rotate_heads(
    source: tl.tensor,
    target: tl.tensor,
    head_stride: tl.tensor,
    heads: tl.tensor,
    block: tl.tensor,
    cos_low: tl.tensor,
    cos_high: tl.tensor,
    sin_low: tl.tensor,
    sin_high: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
) -> None:
    """The block's heads of one row, read with a stride and written contiguous."""
    head = block * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
    half = tl.arange(0, BLOCK_HALF)[None, :]
    inside = (head < heads) & (half < WIDTH // 2)
    low = _load(source + head * head_stride + half, inside)
    high = _load(source + head * head_stride + half + WIDTH // 2, inside)
    new_low = _rounded(low * cos_low[None, :], target.dtype.element_ty) - _rounded(
        high * sin_low[None, :], target.dtype.element_ty
    )
    new_high = _rounded(high * cos_high[None, :], target.dtype.element_ty) + _rounded(
        low * sin_high[None, :], target.dtype.element_ty
    )
    _store(target + head * WIDTH + half, new_low, inside)
    _store(target + head * WIDTH + half + WIDTH // 2, new_high, inside)


@triton.jit
def _rope_kernel(
    query: tl.tensor,
    key: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    positions: tl.tensor,
    query_out: tl.tensor,
    key_out: tl.tensor,
    query_stride: tl.tensor,
    query_head_stride: tl.tensor,
    key_stride: tl.tensor,
    key_head_stride: tl.tensor,
    cos_stride: tl.tensor,
    sin_stride: tl.tensor,
    heads: tl.tensor,
    key_heads: tl.tensor,
    PLACED: tl.constexpr,
    BACKWARD: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
) -> None:
    """Axis 0 is the row; axis 1 the blocks of query heads, then those of key heads.

    With PLACED row t stands at positions[t], otherwise at t.
    """
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    query_blocks = tl.cdiv(heads, BLOCK_HEADS)
    position = row
    if PLACED:
        position = tl.load(positions + row).to(tl.int64)
    half = tl.arange(0, BLOCK_HALF)
    inside = half < WIDTH // 2
    cos_low = _load(cos + position * cos_stride + half, inside)
    cos_high = _load(cos + position * cos_stride + half + WIDTH // 2, inside)
    sin_low = _load(sin + position * sin_stride + half, inside)
    sin_high = _load(sin + position * sin_stride + half + WIDTH // 2, inside)
    if BACKWARD:
        # The transpose: the sines change sign, and each the half that it came from.
        turned_low = -sin_high
        turned_high = -sin_low
    else:
        turned_low = sin_low
        turned_high = sin_high
    if block < query_blocks:
        _rotate_heads(
            query + row * query_stride,
            query_out + row * heads * WIDTH,
            query_head_stride,
            heads,
            block,
            cos_low,
            cos_high,
            turned_low,
            turned_high,
            WIDTH,
            BLOCK_HEADS,
            BLOCK_HALF,
        )
    else:
        _rotate_heads(
            key + row * key_stride,
            key_out + row * key_heads * WIDTH,
            key_head_stride,
            key_heads,
            block - query_blocks,
            cos_low,
            cos_high,
            turned_low,
            turned_high,
            WIDTH,
            BLOCK_HEADS,
            BLOCK_HALF,
        )


@triton.jit
def _activated(gate: tl.tensor, KIND: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """act(gate) and its derivative there."""
    if KIND == "silu":
        share = tl.sigmoid(gate)
        slope = share * (1.0 + gate * (1.0 - share))
    elif KIND == "gelu":
        share = 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
        slope = share + gate * 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    else:
        # 0.5 (1 + tanh(u)) = sigmoid(2 u), which loses no digits where tanh is near -1.
        square = gate * gate
        share = tl.sigmoid(1.5957691216057308 * gate * (1.0 + 0.044715 * square))
        inner_slope = 1.5957691216057308 * (1.0 + 0.134145 * square)
        slope = share + gate * share * (1.0 - share) * inner_slope
    return gate * share, slope


@triton.jit
def _gated_act_forward_kernel(
    gate: tl.tensor,
    up: tl.tensor,
    out: tl.tensor,
    gate_stride: tl.tensor,
    up_stride: tl.tensor,
    width: tl.tensor,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Axis 0 is the row, axis 1 the block of columns."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    activated, _ = _activated(_load(gate + row * gate_stride + columns, inside), KIND)
    activated = _rounded(activated, out.dtype.element_ty)
    value = activated * _load(up + row * up_stride + columns, inside)
    _store(out + row * width + columns, value, inside)


@triton.jit
def _gated_act_backward_kernel(
    gradient: tl.tensor,
    gate: tl.tensor,
    up: tl.tensor,
    d_gate: tl.tensor,
    d_up: tl.tensor,
    gradient_stride: tl.tensor,
    gate_stride: tl.tensor,
    up_stride: tl.tensor,
    width: tl.tensor,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """The activation is computed again: reading it back would cost more than computing it."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    incoming = _load(gradient + row * gradient_stride + columns, inside)
    activated, slope = _activated(_load(gate + row * gate_stride + columns, inside), KIND)
    activated = _rounded(activated, d_up.dtype.element_ty)
    _store(d_up + row * width + columns, incoming * activated, inside)
    incoming *= _load(up + row * up_stride + columns, inside)
    incoming = _rounded(incoming, d_gate.dtype.element_ty)
    _store(d_gate + row * width + columns, incoming * slope, inside)


def _rows(x: Tensor, width: int) -> Tensor:
    """x as [rows, width] whose columns lie side by side; copied only where it must be."""
    x = x.reshape(-1, width)
    return x if x.stride(1) == 1 else x.contiguous()


def _norm_options(width: int) -> tuple[dict[str, int], dict[str, int]]:
    """Constants and launch options of the norm's kernels."""
    block = triton.next_power_of_2(width)
    return {"BLOCK": block}, {"num_warps": min(max(block // 512, 4), 16)}


def _rope_options(width: int) -> tuple[dict[str, int], dict[str, int]]:
    """Constants and launch options of the rotary kernel."""
    half = triton.next_power_of_2(width // 2)
    heads = max(1024 // half, 1)  # eight elements a thread for each half
    return {"WIDTH": width, "BLOCK_HEADS": heads, "BLOCK_HALF": half}, {"num_warps": 4}


def _gated_act_options(width: int) -> tuple[dict[str, int], dict[str, int]]:
    """Constants and launch options of the gated activation's kernels."""
    return {"BLOCK": min(triton.next_power_of_2(width), 1024)}, {"num_warps": 4}


@torch.library.custom_op("ibtrain::rms_norm", mutates_args=())
def rms_norm_op(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The RMS norm of x [..., D]; returns (normed [..., D], rstd [rows])."""
    normed, _, rstd = _norm_forward(x, None, weight, eps)
    return normed, rstd


@torch.library.custom_op("ibtrain::add_rms_norm", mutates_args=())
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
    constants, options = _norm_options(width)
    if rows:
        with torch.cuda.device_of(x):
            _rms_norm_forward_kernel[(rows,)](
                *(x_TD, residual_TD, weight.contiguous(), normed, total, rstd_T),
                *(x_TD.stride(0), residual_TD.stride(0), width, eps),
                ADDS=residual is not None,
                **constants,
                **options,
            )
    return normed, total, rstd_T


@torch.library.custom_op("ibtrain::rms_norm_backward", mutates_args=())
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
    constants, options = _norm_options(width)
    if rows:
        with torch.cuda.device_of(total):
            _rms_norm_backward_kernel[(programs,)](
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


def _save_norm(context: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    context.set_materialize_grads(False)
    total = inputs[0] if len(output) == 2 else output[1]
    context.save_for_backward(total, inputs[-2], output[-1])


def _norm_backward(
    context: Any, d_normed: Tensor | None, d_total: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """(d_sum, d_weight) where either output may have received no gradient."""
    if d_normed is None:
        return d_total, None
    weight_gradient = context.needs_input_grad[-2]
    total, weight, rstd = context.saved_tensors
    d_x, d_weight = rms_norm_backward_op(d_normed, d_total, total, weight, rstd, weight_gradient)
    return d_x, d_weight if weight_gradient else None


def _rms_norm_backward(context: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    return (*_norm_backward(context, gradients[0], None), None)


def _add_rms_norm_backward(context: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    d_x, d_weight = _norm_backward(context, gradients[0], gradients[1])
    return d_x, d_x, d_weight, None


rms_norm_op.register_autograd(_rms_norm_backward, setup_context=_save_norm)
add_rms_norm_op.register_autograd(_add_rms_norm_backward, setup_context=_save_norm)


@torch.library.custom_op("ibtrain::rope", mutates_args=())
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
    places = query if positions is None else positions.contiguous()
    constants, options = _rope_options(width)
    blocks = sum(triton.cdiv(count, constants["BLOCK_HEADS"]) for count in (heads, key_heads))
    if rows and blocks:
        with torch.cuda.device_of(query):
            _rope_kernel[(rows, blocks)](
                *(query, key, cos, sin, places, query_out, key_out),
                *(*query.stride()[:2], *key.stride()[:2], cos.stride(0), sin.stride(0)),
                *(heads, key_heads),
                PLACED=positions is not None,
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


def _save_rope(context: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, cos, sin, positions, context.turned_back = inputs
    context.save_for_backward(cos, sin, positions)


def _rope_backward(context: Any, d_query: Tensor, d_key: Tensor) -> tuple[Tensor | None, ...]:
    cos, sin, positions = context.saved_tensors
    turned = rope_op(d_query, d_key, cos, sin, positions, not context.turned_back)
    return (*turned, None, None, None, None)


rope_op.register_autograd(_rope_backward, setup_context=_save_rope)


@torch.library.custom_op("ibtrain::gated_act", mutates_args=())
def gated_act_op(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    """act(gate) * up, of any shape [..., D]; kind is one of `Activation`."""
    width = gate.shape[-1]
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if out.numel():
        gate_TD, up_TD = _rows(gate, width), _rows(up, width)
        constants, options = _gated_act_options(width)
        with torch.cuda.device_of(gate):
            _gated_act_forward_kernel[(gate_TD.shape[0], triton.cdiv(width, constants["BLOCK"]))](
                *(gate_TD, up_TD, out, gate_TD.stride(0), up_TD.stride(0), width),
                KIND=kind,
                **constants,
                **options,
            )
    return out


@torch.library.custom_op("ibtrain::gated_act_backward", mutates_args=())
def gated_act_backward_op(
    gradient: Tensor, gate: Tensor, up: Tensor, kind: str
) -> tuple[Tensor, Tensor]:
    """(d_gate, d_up), both [..., D]."""
    width = gate.shape[-1]
    d_gate = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    d_up = torch.empty_like(d_gate)
    if d_gate.numel():
        gradient_TD, gate_TD, up_TD = (_rows(x, width) for x in (gradient, gate, up))
        constants, options = _gated_act_options(width)
        with torch.cuda.device_of(gate):
            _gated_act_backward_kernel[(gate_TD.shape[0], triton.cdiv(width, constants["BLOCK"]))](
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


def _save_gated_act(context: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gate, up, context.kind = inputs
    context.save_for_backward(gate, up)


def _gated_act_backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    gate, up = context.saved_tensors
    return (*gated_act_backward_op(gradient, gate, up, context.kind), None)


gated_act_op.register_autograd(_gated_act_backward, setup_context=_save_gated_act)


_VARIANT_WIDTHS = (2048, 4096, 5120)
_VARIANT_HEAD_WIDTH = 128
_TRITON_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def elementwise_variants() -> list[Variant]:
    """Every kernel of this file as the language models of the family launch it."""
    variants = []
    for dtype in _TRITON_NAMES.values():
        for width in _VARIANT_WIDTHS:
            variants += _norm_variants(dtype, width)
            variants += _gated_act_variants(dtype, width)
        variants += _rope_variants(dtype)
    return variants


def _variant(
    name: str,
    kernel: Any,
    pointers: dict[str, str],
    integers: tuple[str, ...],
    constants: dict[str, Any],
    options: dict[str, int],
    unaligned: tuple[str, ...] = (),
    floats: tuple[str, ...] = (),
) -> Variant:
    signature = {name: f"*{dtype}" for name, dtype in pointers.items()}
    signature |= dict.fromkeys(integers, "i32") | dict.fromkeys(floats, "fp32")
    aligned = tuple(name for name in (*pointers, *integers) if name not in unaligned)
    return Variant(name, kernel, signature, constants, aligned, options)


def _norm_variants(dtype: str, width: int) -> list[Variant]:
    constants, options = _norm_options(width)
    forward_pointers = dict.fromkeys(("x", "residual", "weight", "normed", "total"), dtype)
    backward_pointers = dict.fromkeys(("d_normed", "d_total", "total", "weight"), dtype)
    backward_pointers |= {"rstd": "fp32", "d_x": dtype, "partial": "fp32"}
    variants = []
    for adds in (False, True):
        adding = "add_" if adds else ""
        variants.append(
            _variant(
                f"{adding}rms_norm forward {dtype} D{width}",
                _rms_norm_forward_kernel,
                forward_pointers | {"rstd": "fp32"},
                ("x_stride", "residual_stride", "width"),
                {"ADDS": adds, **constants},
                options,
                floats=("eps",),
            )
        )
        for weight_gradient in (False, True):
            trained = " with dW" if weight_gradient else ""
            variants.append(
                _variant(
                    f"{adding}rms_norm backward {dtype} D{width}{trained}",
                    _rms_norm_backward_kernel,
                    backward_pointers,
                    (
                        *("d_normed_stride", "d_total_stride", "total_stride"),
                        *("rows", "width", "rows_per_program"),
                    ),
                    {"ADDS": adds, "WEIGHT_GRADIENT": weight_gradient, **constants},
                    options,
                    unaligned=("rows", "rows_per_program"),
                )
            )
    return variants


def _gated_act_variants(dtype: str, width: int) -> list[Variant]:
    constants, options = _gated_act_options(width)
    variants = []
    for kind in Activation:
        chosen = {"KIND": kind.value, **constants}
        variants += [
            _variant(
                f"gated_act forward {kind} {dtype} D{width}",
                _gated_act_forward_kernel,
                dict.fromkeys(("gate", "up", "out"), dtype),
                ("gate_stride", "up_stride", "width"),
                chosen,
                options,
            ),
            _variant(
                f"gated_act backward {kind} {dtype} D{width}",
                _gated_act_backward_kernel,
                dict.fromkeys(("gradient", "gate", "up", "d_gate", "d_up"), dtype),
                ("gradient_stride", "gate_stride", "up_stride", "width"),
                chosen,
                options,
            ),
        ]
    return variants


def _rope_variants(dtype: str) -> list[Variant]:
    constants, options = _rope_options(_VARIANT_HEAD_WIDTH)
    rotated = ("query", "key", "cos", "sin")
    strides = ("query_stride", "query_head_stride", "key_stride", "key_head_stride")
    return [
        _variant(
            f"rope {'backward' if backward else 'forward'} {dtype} K{_VARIANT_HEAD_WIDTH}"
            f"{' at positions' if placed else ''}",
            _rope_kernel,
            dict.fromkeys(rotated, dtype)
            | {"positions": "i64" if placed else dtype}
            | dict.fromkeys(("query_out", "key_out"), dtype),
            (*strides, "cos_stride", "sin_stride", "heads", "key_heads"),
            {"PLACED": placed, "BACKWARD": backward, **constants},
            options,
            unaligned=("heads", "key_heads"),
        )
        for placed, backward in product((False, True), repeat=2)
    ]
