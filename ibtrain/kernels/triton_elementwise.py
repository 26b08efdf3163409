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

from ibtrain.kernels.reference_elementwise import Activation
from ibtrain.kernels.triton_numbers import rounded
from ibtrain.kernels.variants import Variant


@triton.jit
def _store(pointers: tl.tensor, value: tl.tensor, mask: tl.tensor) -> None:
    value = rounded(value, pointers.dtype.element_ty)
    tl.store(pointers, value.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def _load(pointers: tl.tensor, mask: tl.tensor) -> tl.tensor:
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def rms_norm_forward_kernel(
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
        value = rounded(value, total.dtype.element_ty)
        _store(total + row * width + columns, value, inside)
    scale = tl.rsqrt(tl.sum(value * value, axis=0) / width + eps)
    tl.store(rstd + row, scale)
    normalized = rounded(value * scale, normed.dtype.element_ty)
    _store(normed + row * width + columns, normalized * _load(weight + columns, inside), inside)


@triton.jit
def rms_norm_backward_kernel(
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
        added = gradient
        if ADDS:  # read before it is needed: less waiting, and no register spilled on sm_100
            added = _load(d_total + row * d_total_stride + columns, inside)
        if WEIGHT_GRADIENT:
            d_weight += gradient * normalized
        gradient *= weights
        along = tl.sum(gradient * normalized, axis=0) / width
        gradient = scale * (gradient - normalized * along)
        if ADDS:
            gradient += added
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
    new_low = rounded(low * cos_low[None, :], target.dtype.element_ty) - rounded(
        high * sin_low[None, :], target.dtype.element_ty
    )
    new_high = rounded(high * cos_high[None, :], target.dtype.element_ty) + rounded(
        low * sin_high[None, :], target.dtype.element_ty
    )
    _store(target + head * WIDTH + half, new_low, inside)
    _store(target + head * WIDTH + half + WIDTH // 2, new_high, inside)


@triton.jit
def rope_kernel(
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
    WITH_POSITIONS: tl.constexpr,
    BACKWARD: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
) -> None:
    """Axis 0 is the row; axis 1 the blocks of query heads, then those of key heads.

    With WITH_POSITIONS row t stands at positions[t], otherwise at t.
    """
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    query_blocks = tl.cdiv(heads, BLOCK_HEADS)
    position = row
    if WITH_POSITIONS:
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
def gated_act_forward_kernel(
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
    activated = rounded(activated, out.dtype.element_ty)
    value = activated * _load(up + row * up_stride + columns, inside)
    _store(out + row * width + columns, value, inside)


@triton.jit
def gated_act_backward_kernel(
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
    activated = rounded(activated, d_up.dtype.element_ty)
    _store(d_up + row * width + columns, incoming * activated, inside)
    incoming *= _load(up + row * up_stride + columns, inside)
    incoming = rounded(incoming, d_gate.dtype.element_ty)
    _store(d_gate + row * width + columns, incoming * slope, inside)


def norm_options(width: int, *, sums: bool = False) -> tuple[dict[str, int], dict[str, int]]:
    """Constants and launch options of the norm's kernels; `sums` is of a backward that adds the
    weight's gradient up.
    """
    block = triton.next_power_of_2(width)
    # 4 at 2048 spill on sm_80, and 8 at 4096, with sums, on sm_100.
    warps = 4 if block < 2048 else 8 if block < (4096 if sums else 8192) else 16
    return {"BLOCK": block}, {"num_warps": warps}


def rope_options(width: int) -> tuple[dict[str, int], dict[str, int]]:
    """Constants and launch options of the rotary kernel."""
    half = triton.next_power_of_2(width // 2)
    heads = max(1024 // half, 1)  # eight elements a thread for each half
    return {"WIDTH": width, "BLOCK_HEADS": heads, "BLOCK_HALF": half}, {"num_warps": 4}


def gated_act_options(width: int) -> tuple[dict[str, int], dict[str, int]]:
    """Constants and launch options of the gated activation's kernels."""
    return {"BLOCK": min(triton.next_power_of_2(width), 1024)}, {"num_warps": 4}


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
    forward_pointers = dict.fromkeys(("x", "residual", "weight", "normed", "total"), dtype)
    backward_pointers = dict.fromkeys(("d_normed", "d_total", "total", "weight"), dtype)
    backward_pointers |= {"rstd": "fp32", "d_x": dtype, "partial": "fp32"}
    variants = []
    for adds in (False, True):
        constants, options = norm_options(width)
        adding = "add_" if adds else ""
        variants.append(
            _variant(
                f"{adding}rms_norm forward {dtype} D{width}",
                rms_norm_forward_kernel,
                forward_pointers | {"rstd": "fp32"},
                ("x_stride", "residual_stride", "width"),
                {"ADDS": adds, **constants},
                options,
                floats=("eps",),
            )
        )
        for weight_gradient in (False, True):
            trained = " with dW" if weight_gradient else ""
            constants, options = norm_options(width, sums=weight_gradient)
            variants.append(
                _variant(
                    f"{adding}rms_norm backward {dtype} D{width}{trained}",
                    rms_norm_backward_kernel,
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
    constants, options = gated_act_options(width)
    variants = []
    for kind in Activation:
        chosen = {"KIND": kind.value, **constants}
        variants += [
            _variant(
                f"gated_act forward {kind} {dtype} D{width}",
                gated_act_forward_kernel,
                dict.fromkeys(("gate", "up", "out"), dtype),
                ("gate_stride", "up_stride", "width"),
                chosen,
                options,
            ),
            _variant(
                f"gated_act backward {kind} {dtype} D{width}",
                gated_act_backward_kernel,
                dict.fromkeys(("gradient", "gate", "up", "d_gate", "d_up"), dtype),
                ("gradient_stride", "gate_stride", "up_stride", "width"),
                chosen,
                options,
            ),
        ]
    return variants


def _rope_variants(dtype: str) -> list[Variant]:
    constants, options = rope_options(_VARIANT_HEAD_WIDTH)
    rotated = ("query", "key", "cos", "sin")
    strides = ("query_stride", "query_head_stride", "key_stride", "key_head_stride")
    return [
        _variant(
            f"rope {'backward' if backward else 'forward'} {dtype} K{_VARIANT_HEAD_WIDTH}"
            f"{' at positions' if with_positions else ''}",
            rope_kernel,
            dict.fromkeys(rotated, dtype)
            | {"positions": "i64" if with_positions else dtype}
            | dict.fromkeys(("query_out", "key_out"), dtype),
            (*strides, "cos_stride", "sin_stride", "heads", "key_heads"),
            {"WITH_POSITIONS": with_positions, "BACKWARD": backward, **constants},
            options,
            unaligned=("heads", "key_heads"),
        )
        for with_positions, backward in product((False, True), repeat=2)
    ]
