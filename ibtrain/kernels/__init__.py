"""Attention over packed sequences and the elementwise work around it, fused; plain references."""

from ibtrain.kernels.attention import varlen_attention
from ibtrain.kernels.elementwise import add_rms_norm, gated_act, rms_norm, rope
from ibtrain.kernels.reference_elementwise import Activation
from ibtrain.kernels.triton_support import allow_triton

__all__ = [
    "Activation",
    "add_rms_norm",
    "allow_triton",
    "gated_act",
    "rms_norm",
    "rope",
    "varlen_attention",
]
