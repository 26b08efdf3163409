"""The attentions and elementwise operations of the model family, with their work."""

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ibtrain.kernels import elementwise
from ibtrain.kernels import reference_elementwise as plain
from ibtrain.kernels.backends import AttentionKind

SEED = 20230511
FORWARD, BACKWARD, BOTH = "forward", "backward", "forward+backward"
PACKED_ROWS = 4096


@dataclasses.dataclass(frozen=True)
class Shape:
    """One attention of the model family: a micro-batch of sequences."""

    name: str
    family: str
    heads: int
    width: int
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    causal: bool = False
    dropout: float = 0.0
    quick: bool = False

    @property
    def bias(self) -> bool:
        """Whether it has T5's relative bias."""
        return self.family == "T5 bias"

    @property
    def scale(self) -> float:
        """T5 does not scale its scores."""
        return 1.0 if self.family.startswith("T5") else self.width**-0.5

    @property
    def uniform(self) -> bool:
        """Whether padding adds nothing."""
        return len(set(self.queries)) == len(set(self.keys)) == 1

    def flops(self, passes: str) -> int:
        """Of two matrix products forward and five backward, for the pairs that see each other."""
        pairs = sum(
            sum(max(0, keys - queries + row + 1) for row in range(queries))
            if self.causal
            else queries * keys
            for queries, keys in zip(self.queries, self.keys, strict=True)
        )
        forward = 4 * self.heads * self.width * pairs
        return forward if passes == FORWARD else forward * 7 // 2

    def moved(self, passes: str) -> int:
        """Bytes of q, k, v in and out out; backward those and d_out in, the three gradients out."""
        forward = 2 * 2 * (sum(self.queries) + sum(self.keys)) * self.heads * self.width
        return forward if passes == FORWARD else 3 * forward

    def kind(self, device: torch.device, dtype: torch.dtype) -> AttentionKind:
        """What the dispatch decides by."""
        return AttentionKind(device, dtype, self.width, self.causal, self.bias, self.dropout > 0)


def mixed(low: int, high: int, *, rows: int = 0, samples: int = 0) -> tuple[int, ...]:
    """Lengths drawn from a fixed seed: so many samples, or as many as fill so many rows."""
    draw = random.Random(SEED)
    lengths: list[int] = []
    while len(lengths) < samples or sum(lengths) < rows:
        lengths.append(draw.randint(low, high))
    if rows:
        lengths[-1] -= sum(lengths) - rows
    return tuple(lengths)


def shapes() -> list[Shape]:
    """All shapes, the most telling first."""
    images, samples, answers = 16, mixed(96, 416, rows=PACKED_ROWS), mixed(16, 256, samples=16)

    def self_attention(instruction: int, dropout: float, quick: bool = False) -> Shape:
        lengths = (32 + instruction,) * images
        name = f"Q-Former self 32+{instruction}, dropout {dropout:g}"
        return Shape(name, "Q-Former", 12, 64, lengths, lengths, dropout=dropout, quick=quick)

    def cross_attention(dropout: float) -> Shape:
        name, rest = f"Q-Former cross 32x257, dropout {dropout:g}", ("Q-Former", 12, 64)
        return Shape(name, *rest, (32,) * images, (257,) * images, dropout=dropout)

    def llama(name: str, heads: int, quick: bool = False) -> Shape:
        return Shape(name, "Llama", heads, 128, samples, samples, causal=True, quick=quick)

    def t5(size: str, heads: int) -> list[Shape]:
        source, quick = (160,) * images, size == "XL"

        def part(name: str, *rest: Any, **more: Any) -> Shape:
            return Shape(f"T5-{size} {name}", rest[0], heads, 64, *rest[1:], **more)

        return [
            part("encoder 160", "T5 bias", source, source, quick=quick),
            part("decoder self", "T5 bias", answers, answers, causal=True),
            part("decoder cross", "T5", answers, source),
        ]

    tower = Shape("ViT-g 257", "ViT", 16, 88, (257,) * images, (257,) * images)
    return [
        *(self_attention(128, 0.1, quick=True), cross_attention(0.1)),
        *(*t5("XL", 32), llama("Llama-7B packed", 32, quick=True), tower),
        *(self_attention(128, 0.0), cross_attention(0.0)),
        *(self_attention(length, dropout) for length in (32, 8) for dropout in (0.1, 0.0)),
        *(llama("Llama-13B packed", 40), *t5("XXL", 64)),
    ]


@dataclasses.dataclass(frozen=True)
class Operation:
    """One elementwise operation: its leaves get gradients, its constants do not."""

    name: str
    leaves: tuple[tuple[int, ...], ...]
    constants: Callable[[], tuple[Any, ...]]
    ours: Callable[..., Any]
    plain: Callable[..., Any]
    elements: tuple[int, int]
    """Elements that must move forward and backward, each in or out once."""
    quick: bool = False

    def moved(self, passes: str) -> int:
        """Bytes, in half precision."""
        return 2 * self.elements[passes != FORWARD]


def operations(rows: int = PACKED_ROWS) -> list[Operation]:
    """The three operations at the widths of Llama 7B and 13B."""
    found = []
    for size, width, wide, heads in (("7B", 4096, 11008, 32), ("13B", 5120, 13824, 40)):
        lengths, quick = mixed(96, 416, rows=rows), size == "7B"

        def rope_constants(lengths: tuple[int, ...] = lengths) -> tuple[Tensor, ...]:
            """Positions begin anew with each sample."""
            angle = torch.arange(416)[:, None] / 10000 ** (torch.arange(0, 128, 2) / 128)
            angle = torch.cat((angle, angle), dim=-1)
            return angle.cos(), angle.sin(), torch.cat([torch.arange(each) for each in lengths])

        norm, turned, gated = rows * width, rows * heads * 128, rows * wide
        found += [
            Operation(
                *(f"add+RMSNorm {size} ({width})", ((rows, width),) * 2),
                lambda width=width: (1 + torch.randn(width) / 10, 1e-6),
                *(elementwise.add_rms_norm, plain.add_rms_norm_reference),
                *((4 * norm + width, 4 * norm + width), quick),
            ),
            Operation(
                *(f"RoPE {size} ({heads} heads)", ((rows, heads, 128),) * 2, rope_constants),
                *(elementwise.rope, plain.rope_reference),
                *((4 * turned + 2 * max(lengths) * 128,) * 2, quick),
            ),
            Operation(
                *(f"SiLU gate {size} ({wide})", ((rows, wide),) * 2, lambda: ("silu",)),
                *(elementwise.gated_act, plain.gated_act_reference, (3 * gated, 5 * gated), quick),
            ),
        ]
    return found


def on_cpu(shape: Shape) -> Shape:
    """`shape` as small as a CPU needs it, the widths as they are."""
    return dataclasses.replace(shape, heads=2, queries=shape.queries[:2], keys=shape.keys[:2])
