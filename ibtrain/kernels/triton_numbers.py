"""Numbers in Triton's kernels where its interpreter is not like a card.

bf16 is what differs (Triton 3.7.1): the interpreter multiplies it wrongly, and it cuts off where
a card rounds to the nearest. Half an ulp of bias would hide behind the tolerances, and hide errors.
"""

import triton
import triton.language as tl

from ibtrain.kernels import triton_interpreter
from ibtrain.kernels.triton_support import interpreted

assert triton_interpreter  # mended before a kernel runs

INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def rounded(value: tl.tensor, DTYPE: tl.constexpr) -> tl.tensor:
    """An fp32 value as DTYPE can hold it, in fp32."""
    if INTERPRETED and DTYPE == tl.bfloat16:  # noqa: SIM300
        bits = value.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        result = bits.to(tl.uint32).to(tl.float32, bitcast=True)
    else:
        result = value.to(DTYPE).to(tl.float32)
    return result


@triton.jit
def dot(left: tl.tensor, right: tl.tensor) -> tl.tensor:
    """left, rounded to the type of right, @ right in fp32; fp32 stays whole (no tf32)."""
    if INTERPRETED:
        left = rounded(left.to(tl.float32), right.dtype)
        right = right.to(tl.float32)
    else:
        left = left.to(right.dtype)
    return tl.dot(left, right, input_precision="ieee")
