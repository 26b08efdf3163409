"""What every backend of attention is given: packed rows and where their sequences begin.

Shapes: T packed query rows, S packed key rows, B sequences, H query heads, G key heads,
K head width.
"""

from typing import NamedTuple

from torch import Tensor


class Packed(NamedTuple):
    """Queries [T, H, K], keys, values [S, G, K], cumulative lengths [B+1] (int32), the longest."""

    query_THK: Tensor
    key_SGK: Tensor
    value_SGK: Tensor
    cu_query: Tensor
    cu_key: Tensor
    max_query: int
    max_key: int

    @property
    def sequences(self) -> int:
        """How many there are (B)."""
        return self.cu_query.numel() - 1

    @property
    def group(self) -> int:
        """Query heads to a key head."""
        return self.query_THK.shape[1] // self.key_SGK.shape[1]
