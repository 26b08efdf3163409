"""An attention's tensors, and the ways to compute it."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from attention_bench.shapes import SEED, Shape
from ibtrain.kernels import varlen_attention
from ibtrain.kernels.backends import ENVIRONMENT, Backend, why_not
from ibtrain.kernels.reference import varlen_attention_reference

REACH = 128  # of T5's relative bias
FLAVOURS = {
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa-math": SDPBackend.MATH,
}


class Problem:
    """The tensors of an attention and what must come out."""

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
        self.shape, self.device = shape, device
        self._expected: dict[float, tuple[Tensor, ...]] = {}
        generator = torch.Generator(device).manual_seed(SEED)

        def draw(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, device=device).to(dtype)

        query_rows, key_rows = ((sum(each), shape.heads, shape.width) for each in self._lengths())
        # Scores spread by about 1 whatever the scale, as a trained model's do.
        self.query = draw(*query_rows) * (shape.width**-0.5 / shape.scale)
        self.key, self.value, self.gradient = draw(*key_rows), draw(*key_rows), draw(*query_rows)
        self.bias = draw(shape.heads, 2 * REACH + 1).float() if shape.bias else None
        self.bounds = [torch.tensor((0, *accumulate(each))).int() for each in self._lengths()]
        self.longest = [max(each) for each in self._lengths()]
        self.seen_BQ, self.seen_BS = (
            (torch.arange(max(each)) < torch.tensor(each)[:, None]).to(device)
            for each in self._lengths()
        )

    def _lengths(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.shape.queries, self.shape.keys

    def expected(self, dropout: float) -> tuple[Tensor, ...]:
        """Output and gradients of query, key and value in fp64."""
        if dropout not in self._expected:
            self._expected[dropout] = self._computed(dropout)
        return self._expected[dropout]

    def _computed(self, dropout: float) -> tuple[Tensor, ...]:
        leaves = [x.double().requires_grad_() for x in (self.query, self.key, self.value)]
        options = {"causal": self.shape.causal, "scale": self.shape.scale, "seed": SEED}
        with self.device:  # what the reference makes for itself
            out = varlen_attention_reference(
                *(*leaves, *self.bounds),
                **options,
                rel_bias=None if self.bias is None else self.bias.double(),
                dropout_p=dropout,
            )
        gradients = torch.autograd.grad(out, leaves, self.gradient.double())
        return out.detach(), *gradients

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """What a padded implementation adds to the scores: padding, causality, bias.

        Broadcast over what it does not depend on; None for the tower, which never pads.
        """
        if self.shape.family == "ViT":
            return None
        seen = self.seen_BS[:, None, None, :]
        row, column = (torch.arange(longest, device=self.device) for longest in self.longest)
        if self.shape.causal:
            seen = seen & (column <= row[:, None])
        added = torch.zeros((), device=self.device)
        if self.bias is not None:
            distance = (column - row[:, None]).clamp(-REACH, REACH) + REACH
            added = self.bias[:, distance]
        return torch.where(seen, added, torch.finfo(dtype).min).to(dtype)


@dataclasses.dataclass
class Contender:
    """A way to compute an attention: packed [T, H, K] in and out, or padded [B, L, H, K]."""

    name: str
    attend: Callable[..., Tensor]
    """query, key, value, the dropout and its seed to the output."""
    padded: bool = False
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    reason: str = ""
    """What keeps it from this shape."""


def contenders(problem: Problem, dtype: torch.dtype) -> list[Contender]:
    """All contenders but the compiled one."""
    shape = problem.shape
    kind = shape.kind(problem.device, dtype)
    bounds = [each.to(problem.device) for each in problem.bounds]

    def packed(query: Tensor, key: Tensor, value: Tensor, dropout: float, seed: Any) -> Tensor:
        return varlen_attention(
            *(query, key, value, *bounds, *problem.longest),
            causal=shape.causal,
            scale=shape.scale,
            rel_bias=problem.bias,
            dropout_p=dropout,
            seed=seed,
        )

    def padded(mask: Tensor | None) -> Callable[..., Tensor]:
        def attend(query: Tensor, key: Tensor, value: Tensor, dropout: float, _: Any) -> Tensor:
            out = functional.scaled_dot_product_attention(
                *(rows.transpose(1, 2) for rows in (query, key, value)),
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=shape.causal and mask is None,
                scale=shape.scale,
            )
            return out.transpose(1, 2)

        return attend

    found = [
        Contender(
            *(backend.value, packed),
            around=functools.partial(_named, backend.value),
            reason=why_not(backend, kind),
        )
        for backend in Backend
    ]
    mask = problem.mask(dtype)
    needs_mask = shape.bias or not (shape.uniform or shape.causal)
    for name, flavour in FLAVOURS.items():
        flash = flavour is SDPBackend.FLASH_ATTENTION
        reason = "it takes no mask, and this needs one" if flash and needs_mask else ""
        around = functools.partial(sdpa_kernel, flavour)
        found.append(Contender(name, padded(None if flash else mask), True, around, reason))
    return found


@contextlib.contextmanager
def _named(backend: str) -> Iterator[None]:
    os.environ[ENVIRONMENT] = backend
    try:
        yield
    finally:
        del os.environ[ENVIRONMENT]


def written_out(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, dropout: float
) -> Tensor:
    """Padded attention [B, L, H, K] as a model's eager path writes it."""
    # In fp32 from here: rounding bias and score together costs more than the tolerance.
    scores = (query.transpose(1, 2) @ key.permute(0, 2, 3, 1)).float() * scale
    scores = scores if mask is None else scores + mask
    weights = torch.softmax(scores, dim=-1).to(query.dtype)
    weights = functional.dropout(weights, dropout)
    return (weights @ value.transpose(1, 2)).transpose(1, 2)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled for the one shape it will get: whole, and nothing left from earlier."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False, fullgraph=True)


def compiled_contender(problem: Problem, dtype: torch.dtype) -> Contender:
    """The padded computation under torch.compile."""
    function, mask, scale = compiled(written_out), problem.mask(dtype), problem.shape.scale

    def attend(query: Tensor, key: Tensor, value: Tensor, dropout: float, _: Any) -> Tensor:
        return function(query, key, value, mask, scale, dropout)

    return Contender("compiled", attend, padded=True)
