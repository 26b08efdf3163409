"""Measures contenders: each is held against fp64 first, and timed only if it is right."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attention_bench.clock import Clock
from attention_bench.contenders import (
    FLAVOURS,
    Contender,
    Problem,
    compiled,
    compiled_contender,
    contenders,
)
from attention_bench.rows import Row
from attention_bench.shapes import BACKWARD, BOTH, FORWARD, SEED, Operation, Shape
from ibtrain.kernels.backends import Backend, choose
from ibtrain.kernels.triton_support import why_not_on

TOLERANCES = {torch.bfloat16: (6e-3, 1.2e-2), torch.float16: (1e-3, 1e-3)}
"""||error|| / ||reference|| of outputs and of gradients that a correct kernel stays below."""
COMPILING = 25  # seconds that must be left when a compilation begins
REFUSALS = ("No available kernel", "No viable backend")  # of SDPA, where a flavour is not for it


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
            for what, index in by.items():
                distance = error(found[index], expected[index])
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
