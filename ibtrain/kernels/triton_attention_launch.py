"""How the attention kernels are launched, and as what torch knows them.

Two custom operators, so that torch.compile and activation checkpointing see them as one call each:
`ibtrain::varlen_attention` (output and the rows' softmax denominators) and its backward.

Shapes: T packed query rows, S packed key rows, B sequences, H query heads, G key heads,
K head width, R the reach of the bias.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ibtrain.kernels import triton_attention_backward as backward
from ibtrain.kernels.backends import AttentionKind, Backend, rule_for
from ibtrain.kernels.triton_attention import attention_forward
from ibtrain.kernels.variants import Variant

SPILL_BUDGET = 128
"""Bytes a thread may spill: a few registers at the edge of a loop. A wrong choice of blocks costs
hundreds or thousands."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_TRITON_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


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


def _constants(form: Form, blocks: Blocks) -> dict[str, Any]:
    return {
        "WIDTH": form.head_width,
        "K": form.padded_width,
        "M": blocks.M,
        "N": blocks.N,
        "CAUSAL": form.causal,
        "BIAS": form.bias,
        "DROPOUT": form.dropout,
    }


def _split(form: Form) -> bool:
    """Whether blocks that every row sees whole are passed by in a loop of their own."""
    return form.dtype != torch.float32 and not form.dropout


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


@torch.library.custom_op("ibtrain::varlen_attention", mutates_args=())
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
        attention_forward[grid](
            *(query, key, value, rel_bias, seed, cu_query, cu_key, out, log_totals),
            *(query.stride(0), key.stride(0), value.stride(0), out.stride(0)),
            packed_rows=rows,
            group=heads // key.shape[1],
            scale=scale,
            reach=0 if rel_bias is None else rel_bias.shape[1] // 2,
            **_dropout(dropout_p),
            **_constants(form, blocks),
            SPLIT=_split(form),
            **blocks.options(),
        )
    return out, log_totals


@torch.library.custom_op("ibtrain::varlen_attention_backward", mutates_args=())
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
    rows, heads, _ = query.shape
    key_heads = key.shape[1]
    query_gradient, key_gradient, value_gradient = (
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for tensor in (query, key, value)
    )
    bias_gradient = _bias_gradient(query, rel_bias, bias_gradient_wanted)
    delta = torch.empty_like(log_totals)
    form = _form(query, causal, rel_bias, dropout_p)
    block = delta_rows(form)
    sequences = cu_query.numel() - 1
    inputs = (query, key, value, rel_bias, seed, cu_query, cu_key, gradient, log_totals, delta)
    strides = (query.stride(0), key.stride(0), value.stride(0), gradient.stride(0))
    shared = {
        "packed_rows": rows,
        "group": heads // key_heads,
        "scale": scale,
        "reach": 0 if rel_bias is None else rel_bias.shape[1] // 2,
        **_dropout(dropout_p),
    }
    if rows and heads:
        backward.attention_delta[(-(-rows // block), heads)](
            *(out, gradient, delta, out.stride(0), gradient.stride(0), rows),
            WIDTH=form.head_width,
            K=form.padded_width,
            M=block,
        )
    blocks = backward_query_blocks(form)  # first: it mends `delta`
    grid = (-(-max_query // blocks.M), heads, sequences)
    if 0 not in grid:
        backward.attention_backward_query[grid](
            *(*inputs, query_gradient, bias_gradient, *strides, query_gradient.stride(0)),
            **shared,
            **_constants(form, blocks),
            SPLIT=_split(form),
            BIAS_GRADIENT=bias_gradient_wanted,
            **blocks.options(),
        )
    blocks = backward_key_blocks(form)
    grid = (-(-max_key // blocks.N), key_heads, sequences)
    if 0 not in grid:
        backward.attention_backward_key[grid](
            *(*inputs, key_gradient, value_gradient, *strides, key_gradient.stride(0)),
            **shared,
            **_constants(form, blocks),
            **blocks.options(),
        )
    return query_gradient, key_gradient, value_gradient, bias_gradient


def delta_rows(form: Form) -> int:
    """Rows in a block of `attention_delta`."""
    return 32 if form.padded_width > 64 else 64


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


attention.register_autograd(_backward, setup_context=_keep)


def attention_variants() -> list[Variant]:
    """Every attention kernel that the dispatch can launch on a GPU."""
    variants = []
    forms = _dispatched_forms()
    for form in forms:
        variants += [
            _variant(form, "attention_forward", forward_blocks(form), {"SPLIT": _split(form)}),
            _variant(form, "attention_backward_key", backward_key_blocks(form), {}),
            *(
                _variant(
                    form,
                    "attention_backward_query",
                    backward_query_blocks(form),
                    {"SPLIT": _split(form), "BIAS_GRADIENT": wanted},
                )
                for wanted in ((False, True) if form.bias else (False,))
            ),
        ]
    shapes = dict.fromkeys((form.dtype, form.head_width) for form in forms)
    return variants + [_delta_variant(*each) for each in shapes]


def _dispatched_forms() -> list[Form]:
    gpu = torch.device("cuda")
    forms = []
    switches = (False, True)
    for dtype, width, causal, bias, dropout in product(
        DTYPES, range(8, 129, 8), switches, switches, switches
    ):
        kind = AttentionKind(gpu, dtype, width, causal, bias, dropout)
        if Backend.TRITON in rule_for(kind).backends:
            forms.append(Form(dtype, width, causal, bias, dropout))
    return forms


_RUN_TIME_TYPES = {
    **dict.fromkeys(("bias", "log_totals", "delta", "bias_gradient"), "*fp32"),
    **dict.fromkeys(("cu_query", "cu_key"), "*i32"),
    "seed_place": "*i64",
    **dict.fromkeys(("packed_rows", "group", "reach", "threshold"), "i32"),
    **dict.fromkeys(("scale", "kept_scale"), "fp32"),
}


_KERNELS = {
    "attention_forward": attention_forward,
    "attention_backward_key": backward.attention_backward_key,
    "attention_backward_query": backward.attention_backward_query,
}


def _signature(names: list[str], constants: dict[str, Any], dtype: torch.dtype) -> dict[str, str]:
    def type_of(name: str) -> str:
        if name.endswith("_stride"):
            return "i32"
        return _RUN_TIME_TYPES.get(name, f"*{_TRITON_TYPES[dtype]}")

    return {name: type_of(name) for name in names if name not in constants}


def _variant(form: Form, kernel_name: str, blocks: Blocks, extra: dict[str, Any]) -> Variant:
    kernel: Any = _KERNELS[kernel_name]
    constants = _constants(form, blocks) | extra
    absent = [
        *(() if form.bias else ("bias",)),
        *(() if form.dropout else ("seed_place",)),
        *(() if extra.get("BIAS_GRADIENT") else ("bias_gradient",)),
    ]
    constants |= {name: None for name in absent if name in kernel.arg_names}
    signature = _signature(kernel.arg_names, constants, form.dtype)
    fast = form.dtype != torch.float32
    switched_on = [
        name
        for name, on in (
            ("causal", form.causal),
            ("bias", form.bias),
            ("bias gradient", extra.get("BIAS_GRADIENT")),
            ("dropout", form.dropout),
        )
        if on
    ]
    words = (kernel_name, _TRITON_TYPES[form.dtype], str(form.head_width), *switched_on)
    return Variant(
        name=" ".join(words),
        kernel=kernel,
        signature=signature,
        constants=constants,
        aligned=tuple(name for name, kind in signature.items() if _is_aligned(name, kind)),
        options=blocks.options(),
        tensor_cores=fast,
        asynchronous_copies=fast,
        spill_budget=SPILL_BUDGET,
    )


def _is_aligned(name: str, kind: str) -> bool:
    """torch's tensors begin at multiples of 16 bytes; a row is at least 8 heads' multiple of 8."""
    return kind.startswith("*") or name.endswith("_stride")


def _delta_variant(dtype: torch.dtype, width: int) -> Variant:
    form = Form(dtype, width, causal=False, bias=False, dropout=False)
    constants = {"WIDTH": width, "K": form.padded_width, "M": delta_rows(form)}
    signature = _signature(backward.attention_delta.arg_names, constants, dtype)
    return Variant(
        name=f"attention_delta {_TRITON_TYPES[dtype]} {width}",
        kernel=backward.attention_delta,
        signature=signature,
        constants=constants,
        aligned=tuple(name for name, kind in signature.items() if _is_aligned(name, kind)),
        options={"num_warps": 4, "num_stages": 3},
    )
