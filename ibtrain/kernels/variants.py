"""What the compile gate compiles: one kernel with the types and constants that it is launched with.

Every launch in this folder takes its constants and options from the same functions that list the
variants, so what the gate sees is what runs.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One kernel as the dispatch can choose it.

    Attributes:
        name: what it is, for a person: kernel, dtype, head width, what is on.
        kernel: the `triton.jit` function.
        signature: its run-time arguments by name, in Triton's words (`*bf16`, `i32`, `fp32`).
        constants: its `constexpr` arguments by name.
        aligned: the arguments divisible by 16 (pointers of torch's allocator, strides of rows).
        options: `num_warps`, `num_stages`.
        tensor_cores: whether it must multiply on tensor cores (wgmma on sm_90).
        asynchronous_copies: whether its loads must be pipelined (cp.async).
        spill_budget: bytes of registers that may be spilled, loads and stores together.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    aligned: tuple[str, ...] = ()
    options: dict[str, int] = field(default_factory=dict)
    tensor_cores: bool = False
    asynchronous_copies: bool = False
    spill_budget: int = 0
