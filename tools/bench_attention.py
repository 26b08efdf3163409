"""How fast attention and the elementwise kernels are at this model family's shapes, and how near to
what the card can do.

    python tools/bench_attention.py --out DIR [--dtype bf16|fp16] [--minutes 8] [--quick]
                                    [--only WORDS]

Needs torch and triton (and matplotlib for the picture). Writes DIR/attention.json, attention.md and
attention.png, after every shape anew, so that a run cut short leaves what it has.

contenders  triton, torch_varlen, flash, sdpa: ibtrain's backends, through `varlen_attention` with
            IBTRAIN_ATTENTION set, on packed rows; * marks the one that the dispatch chooses.
            sdpa-flash, sdpa-efficient, sdpa-math: torch's scaled_dot_product_attention as a padded
            implementation calls it: rows padded and mask made beforehand, outside the time.
            sdpa-flash takes no mask: it runs where all lengths are equal, or where padding stands
            behind a causal sequence. compiled: the padded computation written out, torch.compile'd.
right first each result is first compared with fp64, by ||error|| / ||reference||. With dropout,
            Triton's is computed again exactly, from the seed; the others' must be as far from the
            undropped result as such dropout is, and right without it.
time        CUDA events, median; the L2 cache is overwritten before each run. The device is held
            busy while a run is enqueued, so that it is the device's time and not Python's; "host"
            is what enqueueing takes. Forward alone: without gradients, for elementwise with them.
work        FLOPs of the tokens themselves, whoever pads: 4 * head width for each pair of query and
            key that see each other, 2.5 times as much backward. Bytes: each tensor in or out once.
limit       the larger of FLOPs / the rate of a large matmul and bytes / the bandwidth of a large
            copy, both measured at the start; "of limit" is that time over the time taken.

attention.json: date, arguments, commit, device, dtype, seed, hardware, versions, limits, notes,
rows (see `Row`), choices (the dispatch's, and why), left_out, and verdicts (see `Verdict`).

Exit code 1 where a result is wrong or a backend of ibtrain fails; a missed target is none. Without
a GPU it runs the same code on small shapes on the CPU, and says so.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, installed or not

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from ibtrain.kernels import elementwise, varlen_attention
from ibtrain.kernels import reference_elementwise as plain
from ibtrain.kernels.backends import ENVIRONMENT, AttentionKind, Backend, choose, why_not
from ibtrain.kernels.reference import varlen_attention_reference
from ibtrain.kernels.triton_support import interpreted, why_not_on

SEED = 20230511
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCES = {torch.bfloat16: (6e-3, 1.2e-2), torch.float16: (1e-3, 1e-3)}
"""||error|| / ||reference|| of outputs and of gradients that a correct kernel stays below."""
FORWARD, BACKWARD, BOTH = "forward", "backward", "forward+backward"
REACH = 128  # of T5's relative bias
PACKED_ROWS = 4096
COMPILING = 25  # seconds that must be left when a compilation begins
GIT = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
FLAVOURS = {
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa-math": SDPBackend.MATH,
}
REFUSALS = ("No available kernel", "No viable backend")  # of SDPA, where a flavour is not for it
NO_GPU = (
    "There is no GPU here: Triton's kernels, torch_varlen, flash, sdpa-efficient and all targets "
    "cannot be measured. Below are small shapes on the CPU, to show that the script runs; "
    "their times say nothing about a GPU."
)


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


@dataclasses.dataclass
class Row:
    """One contender at one shape in one direction."""

    kind: str
    shape: str
    family: str
    contender: str
    passes: str
    status: str
    """measured, cannot, failed, wrong, or left out"""
    reason: str = ""
    chosen: bool = False
    milliseconds: float | None = None
    host_milliseconds: float | None = None
    tflops: float | None = None
    gigabytes_per_second: float | None = None
    of_limit: float | None = None
    of_copy_bandwidth: float | None = None
    forward_error: float | None = None
    gradient_error: float | None = None
    compile_seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A target and how it was kept: `figures` that must be at least `need`, by shape."""

    target: str
    need: float
    figures: dict[str, float]

    @property
    def state(self) -> str:
        """met, missed, or not measured."""
        if not self.figures:
            return "not measured"
        return "met" if min(self.figures.values()) >= self.need else "missed"

    def lines(self) -> list[str]:
        """The verdict for a person: the target, then each figure."""
        kept = [value >= self.need for value in self.figures.values()]
        count = f" ({sum(kept)} of {len(kept)})" if kept else ""
        each = (
            f"    {'met   ' if value >= self.need else 'missed'} {value:7.3f}  {name}"
            for name, value in sorted(self.figures.items(), key=lambda item: item[1])
        )
        return [f"{self.state}{count}: {self.target}", *each]


def verdicts(rows: list[Row]) -> list[Verdict]:
    """The targets against what was measured."""
    times: dict[str, dict[str, float]] = {}
    chosen: dict[str, str] = {}
    families: dict[str, str] = {}
    for row in rows:
        if row.kind == "attention" and row.milliseconds:
            place = f"{row.shape}, {row.passes}"
            times.setdefault(place, {})[row.contender] = row.milliseconds
            families[place] = row.family
            if row.chosen:
                chosen[place] = row.contender
    ours = Backend.TRITON.value
    against_padded, against_best, against_backends = {}, {}, {}
    for place, found in times.items():
        others = [found[name] for name in found if name != ours]
        aimed_at = families[place] in ("Q-Former", "T5 bias")
        if aimed_at and ours in found and "sdpa-efficient" in found:
            against_padded[place] = found["sdpa-efficient"] / found[ours]
        if chosen.get(place) == ours and others:
            against_best[place] = min(others) / found[ours]
        backends = [found[name] for name in found if name in list(Backend)]
        if place in chosen and len(backends) > 1:
            against_backends[place] = min(backends) / found[chosen[place]]
    bandwidth = {
        f"{row.shape}, {row.passes}": row.of_copy_bandwidth
        for row in rows
        if row.kind == "elementwise" and row.contender == ours and row.of_copy_bandwidth
    }
    targets = (
        (
            "triton at least 1.5 times as fast as padded memory-efficient SDPA at the Q-Former's "
            "shapes and T5's with bias"
        ),
        "triton at least as fast as the best of the others wherever it is dispatched",
        "triton's elementwise kernels at 80 % or more of the copy bandwidth",
        (
            "the dispatch's choice nowhere more than 5 % slower than the best backend (the best "
            "backend's time / the choice's)"
        ),
    )
    figures = (against_padded, against_best, bandwidth, against_backends)
    return list(map(Verdict, targets, (1.5, 1.0, 0.8, 1 / 1.05), figures))


class Clock:
    """Times on the device: the median of many runs, in milliseconds, and the host's part."""

    def __init__(self, device: torch.device, most: int) -> None:
        self.cuda, self.most = device.type == "cuda", most
        # Larger than any card's L2 cache.
        self.flush = torch.empty(256 << 20, dtype=torch.uint8, device=device) if self.cuda else None

    def measure(
        self, run: Callable[[Any], Any], prepare: Callable[[], Any] = lambda: None
    ) -> tuple[float, float]:
        """(device, host) milliseconds of `run` on what `prepare` gives, which is not timed."""
        for _ in range(3):
            run(prepare())
        host = [self._alone(run, prepare) for _ in range(5)]
        whole, enqueued = (statistics.median(each) for each in zip(*host, strict=True))
        runs = max(min(10, self.most), min(self.most, int(0.5 / (whole + 1e-6))))
        if not self.cuda:
            taken = [self._alone(run, prepare)[0] for _ in range(runs)]
            return 1e3 * statistics.median(taken), 1e3 * enqueued
        return self._by_events(run, prepare, runs, enqueued), 1e3 * enqueued

    def _alone(self, run: Callable[[Any], Any], prepare: Callable[[], Any]) -> tuple[float, float]:
        given = prepare()
        self._wait()
        begun = time.perf_counter()
        kept = run(given)
        enqueued = time.perf_counter() - begun
        self._wait()
        whole = time.perf_counter() - begun
        del kept  # after the time: it may hold a graph and large tensors
        return whole, enqueued

    def _by_events(
        self, run: Callable[[Any], Any], prepare: Callable[[], Any], runs: int, enqueued: float
    ) -> float:
        assert self.flush is not None
        # At about two cycles a nanosecond the device sleeps twice as long as the host needs.
        cycles = int(2e9 * min(0.02, 2 * enqueued + 1e-4))
        pairs = []
        for _ in range(runs):
            given = prepare()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.flush.zero_()
            torch.cuda._sleep(cycles)
            begin.record()
            run(given)
            end.record()
            pairs.append((begin, end))
        self._wait()
        return statistics.median(begin.elapsed_time(end) for begin, end in pairs)

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


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
        self.places = [torch.tensor((0, *accumulate(each))).int() for each in self._lengths()]
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
                *(*leaves, *self.places),
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
    places = [each.to(problem.device) for each in problem.places]

    def packed(query: Tensor, key: Tensor, value: Tensor, dropout: float, seed: Any) -> Tensor:
        return varlen_attention(
            *(query, key, value, *places, *problem.longest),
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


def error(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected||; 1e30 (JSON knows no infinity) for what is no number."""
    value = ((found.double() - expected).norm() / expected.norm()).item()
    return value if math.isfinite(value) else 1e30


class Bench:
    """One run: what it measures on, until when, and what it found."""

    def __init__(self, device: torch.device, dtype: torch.dtype, minutes: float) -> None:
        self.device, self.dtype = device, dtype
        self.deadline = time.monotonic() + 60 * minutes
        self.cuda = device.type == "cuda"
        self.clock = Clock(device, 100 if self.cuda else 3)
        self.rows: list[Row] = []
        self.choices: dict[str, dict[str, Any]] = {}
        self.lost = ""
        self.matmul_flops, self.copy_bytes = self._limits()

    def _limits(self) -> tuple[float, float]:
        """FLOP/s of a large matmul and bytes/s of a large copy."""
        side, size = (8192, 1 << 30) if self.cuda else (512, 1 << 24)
        left, right = (
            torch.randn(side, side, device=self.device, dtype=self.dtype) for _ in range(2)
        )
        source = torch.empty(size, dtype=torch.uint8, device=self.device).zero_()
        target = torch.empty_like(source)
        matmul, _ = self.clock.measure(lambda _: torch.mm(left, right))
        copy, _ = self.clock.measure(lambda _: target.copy_(source))
        return 2 * side**3 / (matmul / 1e3), 2 * size / (copy / 1e3)

    def attention(self, shape: Shape, with_compiled: bool) -> None:
        """All contenders at `shape` but the compiled one, or that one alone."""
        picked = choose(shape.kind(self.device, self.dtype))
        self.choices[shape.name] = {
            "backend": picked.backend.value,
            "because": picked.because,
            "passed_over": [list(each) for each in picked.passed_over],
        }

        def prepare() -> tuple[Problem, list[Contender]]:
            problem = Problem(shape, self.device, self.dtype)
            if with_compiled:
                return problem, [compiled_contender(problem, self.dtype)]
            return problem, contenders(problem, self.dtype)

        margin = COMPILING if with_compiled else 5
        names = ["compiled"] if with_compiled else [*(each.value for each in Backend), *FLAVOURS]
        problem, found = self._attempt(shape, names, prepare, margin) or (None, [])
        for contender in found:
            self._attention(problem, contender, margin)

    def _attention(self, problem: Problem, contender: Contender, margin: float) -> None:
        shape, name = problem.shape, contender.name
        if contender.reason:
            self._note(shape, [name], "cannot", contender.reason)
            return

        def measured() -> None:
            leaves, gradient = self._leaves(problem, contender)
            with contender.around():
                facts, complaint = self._check(problem, contender, leaves, gradient)
                if complaint:
                    self._note(shape, [name], "wrong", complaint, **facts)
                    return

                def forward(_: None) -> Tensor:
                    with torch.no_grad():
                        return contender.attend(*leaves, shape.dropout, None)

                def both(_: None) -> tuple[Tensor, ...]:
                    out = contender.attend(*leaves, shape.dropout, None)
                    return torch.autograd.grad(out, leaves, gradient)

                for passes, run in ((FORWARD, forward), (BOTH, both)):
                    timed = self._figures(shape, passes, *self.clock.measure(run))
                    self._note(shape, [name], "measured", passes=[passes], **facts, **timed)

        self._attempt(shape, [name], measured, margin)

    def _leaves(self, problem: Problem, contender: Contender) -> tuple[list[Tensor], Tensor]:
        """Query, key, value and the output's gradient as the contender takes them."""
        rows = (problem.query, problem.key, problem.value, problem.gradient)
        if contender.padded:
            seen = (problem.seen_BQ, problem.seen_BS, problem.seen_BS, problem.seen_BQ)
            rows = [
                each.new_zeros(*at.shape, *each.shape[1:]).masked_scatter_(
                    at[:, :, None, None], each
                )
                for each, at in zip(rows, seen, strict=True)
            ]
        return [each.clone().requires_grad_() for each in rows[:3]], rows[3]

    def _check(
        self, problem: Problem, contender: Contender, leaves: list[Tensor], gradient: Tensor
    ) -> tuple[dict[str, Any], str]:
        """The errors (and the seconds a compilation took), and what is wrong, if anything."""
        begun = time.perf_counter()
        dropout = problem.shape.dropout
        sides = (problem.seen_BQ, problem.seen_BQ, problem.seen_BS, problem.seen_BS)

        def results(dropout: float) -> list[Tensor]:
            out = contender.attend(*leaves, dropout, SEED)
            all_of_it = (out.detach(), *torch.autograd.grad(out, leaves, gradient))
            if not contender.padded:
                return list(all_of_it)
            return [each[seen] for each, seen in zip(all_of_it, sides, strict=True)]

        facts: dict[str, Any] = {}
        faults = []
        is_compiled = contender.name == "compiled"
        if is_compiled:
            results(dropout)
            facts["compile_seconds"] = time.perf_counter() - begun
        exactly = {0.0} if not dropout else {0.0, dropout}
        if dropout and contender.name != Backend.TRITON:
            # Drawn from torch's generator. On random values, dropping moves a result by a known
            # part of its length: the output, and the values' gradient (the last one).
            # The compiled one is held to fp64 where nothing is dropped: it would compile twice.
            exactly = set() if is_compiled else {0.0}
            found, expected = results(dropout), problem.expected(0.0)
            moved, by = math.sqrt(dropout / (1 - dropout)), {"output": 0, "value gradient": 3}
            for what, place in by.items():
                distance = error(found[place], expected[place])
                if not 0.9 * moved < distance < 1.1 * moved:
                    faults.append(f"dropout moves the {what} by {distance:.3f}, not {moved:.3f}")
        for level in sorted(exactly):
            off = [
                error(found, expected)
                for found, expected in zip(results(level), problem.expected(level), strict=True)
            ]
            facts["forward_error"] = max(off[0], facts.get("forward_error", 0.0))
            facts["gradient_error"] = max(*off[1:], facts.get("gradient_error", 0.0))
        return facts, "; ".join((*faults, *self._beyond(facts)))

    def _beyond(self, facts: dict[str, Any]) -> list[str]:
        """The errors above the tolerance, in words."""
        kinds = ("forward_error", "gradient_error")
        return [
            f"{kind.replace('_', ' ')} {facts[kind]:.1e}, and {most:.1e} is tolerated"
            for kind, most in zip(kinds, TOLERANCES[self.dtype], strict=True)
            if facts.get(kind, 0.0) > most
        ]

    def elementwise(self, operation: Operation, with_compiled: bool) -> None:
        """Ours and the plain reference, or the reference under torch.compile, forward and back."""
        jobs = {"triton": operation.ours, "plain": operation.plain}
        margin = COMPILING if with_compiled else 5
        for name, function in {"compiled": None}.items() if with_compiled else jobs.items():
            if name == "triton" and (missing := why_not_on(self.device)):
                self._note(operation, [name], "cannot", missing)
                continue
            measured = functools.partial(self._elementwise, operation, name, function)
            self._attempt(operation, [name], measured, margin)

    def _elementwise(
        self, operation: Operation, name: str, function: Callable[..., Any] | None
    ) -> None:
        torch.manual_seed(SEED)
        leaves = [
            torch.randn(size, device=self.device).to(self.dtype).requires_grad_()
            for size in operation.leaves
        ]
        constants = [_cast(each, self.dtype, self.device) for each in operation.constants()]
        attend = function or compiled(operation.plain)
        exact_leaves = [each.detach().double().requires_grad_() for each in leaves]
        exact = _tuple(
            operation.plain(*exact_leaves, *(_cast(each, torch.float64) for each in constants))
        )
        gradients = [torch.randn_like(each).to(self.dtype) for each in exact]
        exact_gradients = torch.autograd.grad(
            exact, exact_leaves, [each.double() for each in gradients]
        )
        begun = time.perf_counter()
        out = _tuple(attend(*leaves, *constants))
        found = torch.autograd.grad(out, leaves, gradients)
        facts: dict[str, Any] = {}
        if name == "compiled":
            facts["compile_seconds"] = time.perf_counter() - begun
        pairs = ((out, exact), (found, exact_gradients))
        for kind, (ours, right) in zip(("forward_error", "gradient_error"), pairs, strict=True):
            facts[kind] = max(error(a.detach(), b) for a, b in zip(ours, right, strict=True))
        del exact, exact_gradients, exact_leaves, out, found, pairs, ours, right
        if complaint := "; ".join(self._beyond(facts)):
            self._note(operation, [name], "wrong", complaint, **facts)
            return

        def forward(_: None = None) -> tuple[Tensor, ...]:
            return _tuple(attend(*leaves, *constants))

        def backward(out: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return torch.autograd.grad(out, leaves, gradients)

        for passes, run in (
            (FORWARD, self.clock.measure(forward)),
            (BACKWARD, self.clock.measure(backward, forward)),
        ):
            timed = self._figures(operation, passes, *run)
            self._note(operation, [name], "measured", passes=[passes], **facts, **timed)

    def _figures(
        self, of: Shape | Operation, passes: str, taken: float, host: float
    ) -> dict[str, float]:
        seconds, moved = taken / 1e3, of.moved(passes)
        figures = {
            "milliseconds": taken,
            "host_milliseconds": host,
            "gigabytes_per_second": moved / seconds / 1e9,
            "of_copy_bandwidth": moved / seconds / self.copy_bytes,
        }
        least = moved / self.copy_bytes
        if isinstance(of, Shape):
            figures["tflops"] = of.flops(passes) / seconds / 1e12
            least = max(least, of.flops(passes) / self.matmul_flops)
        return figures | {"of_limit": least / seconds}

    def _note(
        self,
        of: Shape | Operation,
        names: list[str],
        status: str,
        reason: str = "",
        passes: list[str] | None = None,
        **facts: Any,
    ) -> None:
        attention = isinstance(of, Shape)
        kind, family = ("attention", of.family) if attention else ("elementwise", "")
        chosen = self.choices.get(of.name, {}).get("backend")
        for name in names:
            for each in passes or [FORWARD, BOTH if attention else BACKWARD]:
                row = Row(kind, of.name, family, name, each, status, reason, name == chosen)
                self.rows.append(dataclasses.replace(row, **facts))

    def _attempt(
        self, of: Shape | Operation, names: list[str], job: Callable[[], Any], margin: float
    ) -> Any:
        """What `job` returns; a note where there is no time for it, or it fails."""
        if self.lost or time.monotonic() + margin > self.deadline:
            self._note(of, names, "left out", self.lost or "the time was up (--minutes)")
            return None
        try:
            result = job()
            self.clock._wait()
            return result
        except Exception as failure:  # noqa: BLE001  (others' code: whatever it raises is a row)
            lines = str(failure).strip().splitlines() or [""]
            refused = any(words in lines[0] for words in REFUSALS) and names[0] in FLAVOURS
            told = f"{type(failure).__name__}: {lines[0][:160].replace('|', '/')}"
            self._note(of, names, "cannot" if refused else "failed", told)
        try:
            self.clock._wait()
        except RuntimeError as failure:
            # After a fault in a kernel nothing more runs in this process.
            self.lost = f"the device was lost at {of.name}, {names[0]} ({failure})".splitlines()[0]
        return None


def _tuple(out: Any) -> tuple[Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)


def _cast(each: Any, dtype: torch.dtype, device: torch.device | None = None) -> Any:
    """A tensor elsewhere and, unless it holds integers, of another dtype; a number as it is."""
    if not isinstance(each, Tensor):
        return each
    return each.to(device or each.device, dtype if each.is_floating_point() else None)


HEADS = {
    "attention": ("forward ms", "TFLOP/s", "of limit", "fwd+bwd ms", "TFLOP/s", "of limit"),
    "elementwise": ("forward ms", "GB/s", "of copy", "backward ms", "GB/s", "of copy"),
}


def table(rows: list[Row], kind: str) -> list[list[str]]:
    """Cells by line, a heading first: a contender's two directions in one line."""
    head = ["shape", "contender", *HEADS[kind], "host ms", "remarks"]
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        if row.kind == kind:
            groups.setdefault(row.shape, {}).setdefault(row.contender, []).append(row)
    lines = [
        [shape, name + (" *" if found[0].chosen else ""), *_cells(found)]
        for shape, by_name in groups.items()
        for name, found in by_name.items()
    ]
    return [head, *lines]


def _cells(found: list[Row]) -> list[str]:
    def text(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    cells, remarks = [], []
    for row in found[:2]:
        rate, share = (row.tflops, row.of_limit)
        if row.kind == "elementwise":
            rate, share = row.gigabytes_per_second, row.of_copy_bandwidth
        cells += [text(row.milliseconds, ".4f"), text(rate, ".1f"), text(share, ".0%")]
    row, last = found[0], found[-1]
    cells += [""] * (6 - len(cells))
    if last.status != "measured":
        remarks.append(f"{last.status}: {last.reason}")
    if row.forward_error is not None and row.gradient_error is not None:
        remarks.append(f"errors {row.forward_error:.0e}, {row.gradient_error:.0e}")
    if row.compile_seconds is not None:
        remarks.append(f"compiled in {row.compile_seconds:.0f} s")
    host = " / ".join(text(each.host_milliseconds, ".3f") for each in found[:2])
    return [*cells, host.strip(" /"), "; ".join(remarks)]


def aligned(lines: list[list[str]]) -> list[str]:
    """Columns under one another; the shape is said once."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown, before = [], ""
    for line in lines:
        cells = ["" if line[0] == before else line[0], *line[1:]]
        before = line[0]
        left = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(cells[2:-1], widths[2:-1], strict=True)]
        shown.append("  ".join((*left, *right, cells[-1])).rstrip())
    return shown


def summary(report: dict[str, Any]) -> list[str]:
    """What stands above the tables."""
    limits, versions = report["limits"], report["versions"]
    return [
        *report["notes"],
        f"{report['date']}, {report['hardware']['name']}, driver {report['hardware']['driver']}, "
        f"torch {versions['torch']}, triton {versions['triton']}, CUDA {versions['cuda']}, "
        f"commit {report['commit']}, {report['dtype']}",
        f"Measured limits: matmul {limits['matmul_tflops']:.1f} TFLOP/s, "
        f"copy {limits['copy_gigabytes_per_second']:.0f} GB/s.",
    ]


def markdown(report: dict[str, Any], rows: list[Row]) -> str:
    """The report for docs/benchmarks."""
    parts = ["# Attention and elementwise kernels", *summary(report)]
    parts.append(f"Command: `python tools/bench_attention.py {report['arguments']}`")
    for kind in HEADS:
        head, *lines = table(rows, kind)
        marks = ["---"] * 2 + ["---:"] * (len(head) - 3) + ["---"]
        body = "\n".join(f"| {' | '.join(cells)} |" for cells in (head, marks, *lines))
        parts.append(f"## {kind.capitalize()}\n\n{body}")
    told = "\n".join(line for verdict in verdicts(rows) for line in ["", *verdict.lines()])
    parts.append(f"## Targets\n\n```\n{told.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def picture(rows: list[Row], title: str, path: Path) -> str:
    """Draws a panel for each shape; returns what kept it from being drawn."""
    try:
        import matplotlib
    except ImportError as failure:
        return f"No picture is drawn: {failure}."
    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = [row for row in rows if row.milliseconds]
    panels = list(dict.fromkeys((row.kind, row.shape) for row in measured))
    if not panels:
        return "No picture is drawn: nothing was measured."
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(
        *(lines, columns), figsize=(4.6 * columns, 3 * lines + 0.6), squeeze=False
    )
    for place in axes.flat[len(panels) :]:
        place.axis("off")
    for place, (kind, shape) in zip(axes.flat, panels, strict=False):
        found = [row for row in measured if (row.kind, row.shape) == (kind, shape)]
        names = list(dict.fromkeys(row.contender for row in found))
        longest = max(row.milliseconds or 0 for row in found)
        for row in found:
            second = row.passes != FORWARD
            height = names.index(row.contender) + (0.2 if second else -0.2)
            colour = ("#9ecae1", "#3182bd") if row.contender != "triton" else ("#fdae6b", "#e6550d")
            place.barh(height, row.milliseconds, 0.38, color=colour[second])
            speed = f"{row.tflops:.3g} TFLOP/s" if row.tflops else f"{row.of_copy_bandwidth:.0%}"
            place.text(
                *((row.milliseconds or 0) + 0.01 * longest, height),
                f"{row.milliseconds:.3g} ms, {speed}",
                va="center",
                fontsize=6.5,
            )
        chosen = {row.contender for row in found if row.chosen}
        place.set_yticks(range(len(names)), [name + " *" * (name in chosen) for name in names])
        place.set_xlim(0, 1.55 * longest)
        place.set_ylim(len(names) - 0.5, -0.5)
        place.tick_params(labelsize=8)
        place.set_title(shape, fontsize=9)
        place.set_xlabel("ms", fontsize=8)
        for side in ("top", "right"):
            place.spines[side].set_visible(False)
    figure.suptitle(
        f"{title}\nlight: forward; dark: forward+backward (elementwise: backward, % of copy "
        "bandwidth); orange: Triton; *: dispatched",
        fontsize=9,
    )
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.2 / (3 * lines + 0.6)))
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return ""


def told_by(*command: str) -> str:
    """The first line that a program prints, or `unknown`."""
    try:
        told = subprocess.run(
            command, capture_output=True, text=True, timeout=20, cwd=Path(__file__).parent
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return (told.stdout.strip().splitlines() or ["unknown"])[0]


def hardware(device: torch.device) -> dict[str, Any]:
    """The device's name, driver and size."""
    if device.type != "cuda":
        return {"name": platform.processor() or platform.machine(), "driver": "none"}
    card = torch.cuda.get_device_properties(device)
    asked = "driver_version,power.limit,clocks.max.sm"
    told = told_by("nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader").split(", ")
    return {
        "name": card.name,
        "driver": told[0],
        "power_limit_and_clock": told[1:],
        "multiprocessors": card.multi_processor_count,
        "memory_bytes": card.total_memory,
    }


def versions() -> dict[str, str]:
    """Of torch, CUDA and triton, and of Python."""
    try:
        import triton
    except ImportError:
        triton = None
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "triton": getattr(triton, "__version__", "none"),
        "python": platform.python_version(),
    }


def write(report: dict[str, Any], bench: Bench, out: Path | None) -> None:
    """JSON and markdown as they stand."""
    report["rows"] = [dataclasses.asdict(row) for row in bench.rows]
    report["choices"] = bench.choices
    report["left_out"] = sorted(
        {f"{row.shape}: {row.contender}" for row in bench.rows if row.status == "left out"}
    )
    report["verdicts"] = [
        {**dataclasses.asdict(verdict), "state": verdict.state} for verdict in verdicts(bench.rows)
    ]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report, indent=1)
        (out / "attention.json").write_text(text + "\n", encoding="utf-8")
        (out / "attention.md").write_text(markdown(report, bench.rows), encoding="utf-8")


def on_cpu(shape: Shape) -> Shape:
    """`shape` as small as a CPU needs it, the widths as they are."""
    return dataclasses.replace(shape, heads=2, queries=shape.queries[:2], keys=shape.keys[:2])


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints, writes, and returns the exit code."""
    parser = _parser()
    parsed = parser.parse_args(arguments)
    asked = " ".join(sys.argv[1:] if arguments is None else arguments)
    os.environ.pop(ENVIRONMENT, None)
    warnings.filterwarnings("ignore")  # SDPA warns of every flavour that refuses
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cuda = device.type == "cuda"
    torch.manual_seed(SEED)
    if not any(parsed.only.lower() in each.name.lower() for each in (*shapes(), *operations())):
        parser.error(f"no shape's name has --only {parsed.only!r} in it")
    minutes = parsed.minutes if cuda else min(0.9, parsed.minutes)
    bench = Bench(device, DTYPES[parsed.dtype], minutes)
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "arguments": asked.replace(str(parsed.out), "DIR") if parsed.out else asked,
        "commit": parsed.commit or told_by(*GIT),
        "device": device.type,
        "dtype": parsed.dtype,
        "seed": SEED,
        "hardware": hardware(device),
        "versions": versions(),
        "limits": {
            "matmul_tflops": bench.matmul_flops / 1e12,
            "copy_gigabytes_per_second": bench.copy_bytes / 1e9,
        },
        "notes": [] if cuda else [NO_GPU],
    }
    if interpreted():
        report["notes"].append("Triton's kernels run in its interpreter: their times say nothing.")
    for line in summary(report):
        print(line, flush=True)
    for name, job in _jobs(bench, parsed, cuda):
        print(f"... {name}", file=sys.stderr, flush=True)
        job()
        write(report, bench, parsed.out)
    return _conclude(report, bench, parsed.out)


def _jobs(
    bench: Bench, parsed: argparse.Namespace, cuda: bool
) -> Iterator[tuple[str, Callable[[], None]]]:
    """What to do, the essential first: compiling is slow, and comes last."""

    def wanted(each: Shape | Operation) -> bool:
        return (each.quick or not parsed.quick) and parsed.only.lower() in each.name.lower()

    attentions = [each if cuda else on_cpu(each) for each in shapes() if wanted(each)]
    elements = [each for each in operations(PACKED_ROWS if cuda else 256) if wanted(each)]
    for shape in attentions:
        yield shape.name, functools.partial(bench.attention, shape, False)
    for each in elements:
        yield each.name, functools.partial(bench.elementwise, each, False)
    for each in elements:
        yield f"{each.name}, compiled", functools.partial(bench.elementwise, each, True)
    for shape in attentions:
        yield f"{shape.name}, compiled", functools.partial(bench.attention, shape, True)


def _conclude(report: dict[str, Any], bench: Bench, out: Path | None) -> int:
    """Tables, verdicts, what was left out, the picture; the exit code."""
    rows = bench.rows
    for kind in HEADS:
        print("", *aligned(table(rows, kind)), sep="\n")
    print("\nTargets")
    for verdict in verdicts(rows):
        print(*verdict.lines(), sep="\n")
    if report.get("left_out"):
        print(f"Left out: {'; '.join(report['left_out'])}")
    bad = [
        row
        for row in rows
        if row.status == "wrong" or (row.status == "failed" and row.contender in list(Backend))
    ]
    for row in bad:
        print(f"{row.status.upper()}: {row.shape}, {row.contender}, {row.passes}: {row.reason}")
    if out is not None:
        title = f"{report['hardware']['name']}, {report['dtype']}, {report['date']}"
        undrawn = picture(rows, title, out / "attention.png")
        report["notes"] += [undrawn] if undrawn else []
        write(report, bench, out)
        print(undrawn or f"Written to {out}: attention.json, attention.md, attention.png")
    return 1 if bad else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="where the three files go")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--minutes", type=float, default=8, help="when to begin nothing more")
    parser.add_argument("--quick", action="store_true", help="a few telling shapes")
    parser.add_argument("--only", default="", metavar="WORDS", help="shapes whose name has them")
    parser.add_argument("--commit", help="what to call the commit where git cannot be asked")
    return parser


if __name__ == "__main__":
    sys.exit(main())
