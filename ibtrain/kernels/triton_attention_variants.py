"""The attention kernels that the dispatch can launch, for the compile gate."""

from itertools import product
from typing import Any

import torch

from ibtrain.kernels.backends import AttentionKind, Backend, rule_for
from ibtrain.kernels.triton_attention import attention_forward
from ibtrain.kernels.triton_attention_backward import (
    attention_backward_key,
    attention_backward_query,
    attention_delta,
)
from ibtrain.kernels.triton_attention_forms import (
    Blocks,
    Form,
    backward_key_blocks,
    backward_query_blocks,
    constants,
    delta_rows,
    forward_blocks,
    split,
)
from ibtrain.kernels.variants import Variant

SPILL_BUDGET = 128
"""Bytes a thread may spill: a few registers at the edge of a loop. A wrong choice of blocks costs
hundreds or thousands."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_TRITON_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def attention_variants() -> list[Variant]:
    """Every attention kernel that the dispatch can launch on a GPU."""
    forms = _dispatched_forms()
    variants = [variant for form in forms for variant in _variants(form, {"group": 1})]
    # Several query heads to a key head: other Llamas than Vicuna.
    grouped = [form for form in forms if form.causal and not form.bias]
    variants += [variant for form in grouped for variant in _variants(form, {})]
    shapes = dict.fromkeys((form.dtype, form.head_width) for form in forms)
    return variants + [_delta_variant(*each) for each in shapes]


def _variants(form: Form, known: dict[str, Any]) -> list[Variant]:
    with_split = known | {"SPLIT": split(form)}
    return [
        _variant(form, "attention_forward", forward_blocks(form), with_split),
        _variant(form, "attention_backward_key", backward_key_blocks(form), known),
        *(
            _variant(
                form,
                "attention_backward_query",
                backward_query_blocks(form),
                with_split | {"BIAS_GRADIENT": wanted},
            )
            for wanted in ((False, True) if form.bias else (False,))
        ),
    ]


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
    "seed_address": "*i64",
    **dict.fromkeys(("packed_rows", "group", "reach", "threshold"), "i32"),
    **dict.fromkeys(("scale", "kept_scale"), "fp32"),
}


_KERNELS = {
    "attention_forward": attention_forward,
    "attention_backward_key": attention_backward_key,
    "attention_backward_query": attention_backward_query,
}


def _signature(names: list[str], known: dict[str, Any], dtype: torch.dtype) -> dict[str, str]:
    def type_of(name: str) -> str:
        if name.endswith("_stride"):
            return "i32"
        return _RUN_TIME_TYPES.get(name, f"*{_TRITON_TYPES[dtype]}")

    return {name: type_of(name) for name in names if name not in known}


def _variant(form: Form, kernel_name: str, blocks: Blocks, extra: dict[str, Any]) -> Variant:
    kernel: Any = _KERNELS[kernel_name]
    values = constants(form, blocks) | extra
    absent = [
        *(() if form.bias else ("bias",)),
        *(() if form.dropout else ("seed_address",)),
        *(() if extra.get("BIAS_GRADIENT") else ("bias_gradient",)),
    ]
    values |= {name: None for name in absent if name in kernel.arg_names}
    signature = _signature(kernel.arg_names, values, form.dtype)
    if "group" not in extra:  # written for every query head, and added up afterwards
        summed = [name for name in ("key_gradient", "value_gradient") if name in signature]
        signature |= dict.fromkeys(summed, "*fp32")
    fast = form.dtype != torch.float32
    switched_on = [
        name
        for name, on in (
            ("causal", form.causal),
            ("bias", form.bias),
            ("bias gradient", extra.get("BIAS_GRADIENT")),
            ("dropout", form.dropout),
            ("grouped", "group" not in extra),
        )
        if on
    ]
    words = (kernel_name, _TRITON_TYPES[form.dtype], str(form.head_width), *switched_on)
    return Variant(
        name=" ".join(words),
        kernel=kernel,
        signature=signature,
        constants=values,
        aligned=tuple(name for name, kind in signature.items() if _is_aligned(name, kind)),
        options=blocks.options(),
        tensor_cores=fast,
        asynchronous_copies=fast,
        spill_budget=SPILL_BUDGET,
    )


def _is_aligned(name: str, kind: str) -> bool:
    """torch's tensors begin at multiples of 16 bytes, and the family's rows are 16 of them wide."""
    return kind.startswith("*") or name.endswith("_stride")


def _delta_variant(dtype: torch.dtype, width: int) -> Variant:
    form = Form(dtype, width, causal=False, bias=False, dropout=False)
    values = {"WIDTH": width, "K": form.padded_width, "M": delta_rows(form)}
    signature = _signature(attention_delta.arg_names, values, dtype)
    return Variant(
        name=f"attention_delta {_TRITON_TYPES[dtype]} {width}",
        kernel=attention_delta,
        signature=signature,
        constants=values,
        aligned=tuple(name for name, kind in signature.items() if _is_aligned(name, kind)),
        options={"num_warps": 4, "num_stages": 3},
    )
