"""Attention over packed sequences: one public function, its backends, and a plain reference."""

from ibtrain.kernels.attention import varlen_attention

__all__ = ["varlen_attention"]
