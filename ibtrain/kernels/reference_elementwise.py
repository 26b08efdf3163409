"""The semantics of the fused elementwise kernels in plain torch.

In fp64 they are what every kernel is tested against. In fp32, bf16 and fp16 they round where
transformers' modules round, so that a CPU run is bitwise transformers'.

Shapes: T packed rows, D width, H query heads, G key heads, K head width, P positions.
"""

import math
from enum import StrEnum

import torch
from torch import Tensor
from torch.nn import functional


class Activation(StrEnum):
    """What a gated feed-forward layer applies to its gate."""

    SILU = "silu"
    GELU = "gelu"
    """x Phi(x), by the error function."""
    GELU_TANH = "gelu_tanh"
    """The tanh form, transformers' `gelu_new`."""


def add_rms_norm_reference(
    x_TD: Tensor, residual_TD: Tensor | None, weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The residual sum and its RMS norm; returns (normed, sum), both [..., D] in x's dtype.

    sum = residual + x; normed = weight * (sum * rsqrt(mean(sum ** 2) + eps)), the parenthesis in
    fp32 (fp64 stays fp64) and rounded before the weight, as LlamaRMSNorm and T5LayerNorm do
    (transformers 4.57, modeling_llama.py and modeling_t5.py).
    """
    sum_TD = x_TD if residual_TD is None else residual_TD + x_TD
    wide_TD = sum_TD.to(torch.promote_types(sum_TD.dtype, torch.float32))
    variance_T1 = wide_TD.pow(2).mean(-1, keepdim=True)
    normalized_TD = (wide_TD * torch.rsqrt(variance_T1 + eps)).to(sum_TD.dtype)
    return weight_D * normalized_TD, sum_TD


def rope_reference(
    query_THK: Tensor,
    key_TGK: Tensor,
    cos_PK: Tensor,
    sin_PK: Tensor,
    positions_T: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Rotary embedding by halves, as transformers' `apply_rotary_pos_emb`; returns (query, key).

    Row t is turned by cos[positions[t]] and sin[positions[t]], or cos[t] and sin[t] where
    `positions_T` is None.
    """
    if positions_T is None:
        rows = query_THK.shape[0]
        cos_TK, sin_TK = cos_PK[:rows], sin_PK[:rows]
    else:
        cos_TK, sin_TK = cos_PK[positions_T], sin_PK[positions_T]
    return _rotated(query_THK, cos_TK, sin_TK), _rotated(key_TGK, cos_TK, sin_TK)


def _rotated(x_THK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    low, high = x_THK.chunk(2, dim=-1)
    turned_THK = torch.cat((-high, low), dim=-1)
    return x_THK * cos_TK[:, None] + turned_THK * sin_TK[:, None]


def gated_act_reference(gate: Tensor, up: Tensor, kind: Activation | str) -> Tensor:
    """act(gate) * up, of the inputs' shape [..., D].

    Raises:
        ValueError: when `kind` is not one of `Activation`.
    """
    kind = Activation(kind)
    if kind is Activation.SILU:
        return functional.silu(gate) * up
    if kind is Activation.GELU:
        return functional.gelu(gate) * up
    # torch's own gelu(approximate="tanh") differs from transformers' formula in the last bits.
    inner = math.sqrt(2.0 / math.pi) * (gate + 0.044715 * torch.pow(gate, 3.0))
    return 0.5 * gate * (1.0 + torch.tanh(inner)) * up
