"""Every kernel that the dispatch can choose, on the card, against the reference in fp64.

Attention: each form of Triton's kernels (dtype, head width, causal, bias, dropout) at lengths that
begin and end inside blocks, with empty sequences and single keys; the libraries and SDPA wherever
the dispatch can fall back on them. Elementwise kernels: each operation at the family's widths and
at odd ones. Compiling takes longest, so processes share the work.

Shapes: T query rows, S key rows, H query heads, G key heads, K head width.
"""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import accumulate, product
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor

from gpu_parts.sheet import Job, Sheet, card, first_line
from ibtrain.kernels import elementwise, varlen_attention
from ibtrain.kernels import reference_elementwise as plain
from ibtrain.kernels.backends import ENVIRONMENT, AttentionKind, Backend, rule_for, why_not
from ibtrain.kernels.reference import varlen_attention_reference

TOLERANCES = {
    torch.bfloat16: (6e-3, 1.2e-2),
    torch.float16: (1e-3, 1e-3),
    torch.float32: (2e-6, 2e-6),
}
"""||error|| / ||reference|| of the output and of gradients that a correct kernel stays below."""
SEED = (3 << 40) + 12345
WIDTHS = (64, 80, 88, 96, 128)
REACH = 40
WORKERS = 12
"""The training part runs beside it."""


@dataclass(frozen=True)
class Case:
    """One attention to compute."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    heads: int
    key_heads: int
    width: int
    dtype: torch.dtype
    causal: bool
    bias: bool
    dropout: float
    backend: Backend

    @property
    def name(self) -> str:
        """In words, as the compile gate names its kernels."""
        switches = [name for name in ("causal", "bias", "dropout") if getattr(self, name)]
        grouped = ["grouped"] * (self.key_heads < self.heads)
        dtype = str(self.dtype).removeprefix("torch.")
        return " ".join([self.backend.value, dtype, str(self.width), *switches, *grouped])


@dataclass(frozen=True)
class Elementwise:
    """One elementwise operation to compute."""

    operation: str
    dtype: torch.dtype
    rows: int
    width: int
    detail: str = ""

    @property
    def name(self) -> str:
        """In words."""
        dtype = str(self.dtype).removeprefix("torch.")
        words = (self.operation, self.detail, dtype, f"{self.rows}x{self.width}")
        return " ".join(word for word in words if word)


def run(job: Job, sheet: Sheet) -> None:
    """Compiles and compares all of them, several processes side by side."""
    cases = list(all_cases(job))
    sheet.facts["cases"] = len(cases)
    workers = 1 if job.rehearse else min(WORKERS, max(1, (os.cpu_count() or 1) - 4))
    tasks = [(case, job.device.type) for case in cases]
    with (
        card(job, alone=False),
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
    ):
        waiting = {pool.submit(_compared, *task): task[0] for task in tasks}
        for future in as_completed(waiting):
            case = waiting[future]
            try:
                row = future.result()
            except Exception as error:  # noqa: BLE001 - a process that the card has killed
                row = {"name": case.name, "fault": f"{type(error).__name__}: {first_line(error)}"}
            sheet.add(**row)
            if row.get("fault"):
                sheet.fault(f"{row['name']}: {row['fault']}")
    sheet.facts["right"] = sum(not row.get("fault") for row in sheet.rows)


def all_cases(job: Job) -> Iterator[Case | Elementwise]:
    """Every form that the dispatch can choose; in a rehearsal a few of each kind."""
    if job.rehearse:
        yield from _rehearsed_cases()
        return
    yield from _elementwise_cases((1, 33, 4096), (88, 2048, 4096, 5120))
    queries, keys = (257, 33, 0, 1, 160, 64), (257, 65, 5, 1, 31, 200)
    for kind in _kinds():
        for backend in rule_for(kind).backends:
            if backend is not Backend.TRITON and why_not(backend, kind):
                continue
            rest = (kind.head_width, kind.dtype, kind.causal, kind.bias, 0.1 * kind.dropout)
            if backend is Backend.TRITON or not kind.dropout:  # the others draw as they like
                yield Case(queries, keys, 4, 4, *rest, backend)
                if kind.dtype == torch.bfloat16:
                    yield Case((416, 96), (416, 96), 4, 4, *rest, backend)
            if kind.causal and not kind.bias and not kind.dropout:
                yield Case(queries, keys, 4, 2, *rest, backend)


def _kinds() -> Iterator[AttentionKind]:
    switches = (False, True)
    for dtype, width, causal, bias, dropout in product(
        TOLERANCES, WIDTHS, switches, switches, switches
    ):
        yield AttentionKind(torch.device("cuda"), dtype, width, causal, bias, dropout)


def _rehearsed_cases() -> Iterator[Case | Elementwise]:
    for dtype, causal in ((torch.bfloat16, True), (torch.float32, False)):
        rest = (64, dtype, causal, not causal, 0.1)
        yield Case((33, 0, 5), (40, 3, 5), 2, 2, *rest, Backend.TRITON)
    yield Case((33, 5), (33, 5), 2, 1, 128, torch.bfloat16, True, False, 0.0, Backend.TRITON)
    yield Case((33, 5), (33, 5), 2, 2, 88, torch.float32, True, False, 0.0, Backend.SDPA)
    yield from _elementwise_cases((3,), (88,))


def _elementwise_cases(rows: tuple[int, ...], widths: tuple[int, ...]) -> Iterator[Elementwise]:
    for dtype, count, width in product(TOLERANCES, rows, widths):
        for detail in ("", "residual", "residual, weight trained"):
            yield Elementwise("rms_norm", dtype, count, width, detail)
        yield from (
            Elementwise("gated_act", dtype, count, width, str(kind)) for kind in plain.Activation
        )
    for dtype, count, width in product(TOLERANCES, rows, (64, 88, 128)):
        yield from (Elementwise("rope", dtype, count, width, at) for at in ("", "positions"))


def _compared(case: Case | Elementwise, device: str) -> dict[str, Any]:
    """Errors of outputs and gradients, and whether a second run gives the same bits."""
    begun = time.perf_counter()
    names, wanted, ours, repeatable = (
        _attention(case, torch.device(device))
        if isinstance(case, Case)
        else _elementwise(case, torch.device(device))
    )
    try:
        first, second = ours(), ours()
    except Exception as error:  # noqa: BLE001 - whatever a card brings up is the result
        return {"name": case.name, "fault": f"{type(error).__name__}: {first_line(error)}"}
    forward, backward = TOLERANCES[case.dtype]
    errors, faults = {}, []
    for name, got, again, expected in zip(names, first, second, wanted, strict=True):
        errors[name] = relative_error(got, expected)
        most = forward if name.startswith("output") else backward
        if not errors[name] <= most:  # nan is above it
            faults.append(f"{name} is off by {errors[name]:.1e}, {most:.1e} is tolerated")
        if name in repeatable and not torch.equal(got, again):
            faults.append(f"{name} differs from run to run")
    return {
        "name": case.name,
        "errors": errors,
        "seconds": time.perf_counter() - begun,
        "fault": "; ".join(faults),
    }


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """||got - wanted|| / ||wanted||; the difference alone where nothing is wanted."""
    scale = wanted.double().norm().item()
    difference = (got.double() - wanted.double()).norm().item()
    return difference / scale if scale else difference


Prepared = tuple[list[str], list[Tensor], Callable[[], list[Tensor]], set[str]]
"""Names of the results, what they must be, what computes them, and which must repeat."""


def _attention(case: Case, device: torch.device) -> Prepared:
    generator = torch.Generator(device).manual_seed(1)

    def draw(*shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=generator, device=device)
        return drawn.to(case.dtype).double().requires_grad_()

    rows = (sum(case.queries), case.heads), *[(sum(case.keys), case.key_heads)] * 2
    exact = [draw(*each, case.width) for each in rows]
    if case.bias:
        shape = (case.heads, 2 * REACH + 1)
        exact.append(
            torch.randn(shape, generator=generator, device=device).double().requires_grad_()
        )
    gradient = draw(*rows[0], case.width).detach()
    places = [
        torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        for lengths in (case.queries, case.keys)
    ]
    options: dict[str, Any] = {"causal": case.causal, "dropout_p": case.dropout, "seed": SEED}
    with device:  # what the reference makes for itself
        out = varlen_attention_reference(
            *(*exact[:3], *places), **options, rel_bias=exact[3] if case.bias else None
        )
    wanted = [out.detach(), *torch.autograd.grad(out, exact, gradient)]
    leaves = [leaf.detach().to(case.dtype).requires_grad_() for leaf in exact[:3]]
    leaves += [leaf.detach().float().requires_grad_() for leaf in exact[3:]]
    on_device = [place.to(device) for place in places]

    def ours() -> list[Tensor]:
        os.environ[ENVIRONMENT] = case.backend.value
        out = varlen_attention(
            *(*leaves[:3], *on_device, max(case.queries), max(case.keys)),
            **options,
            rel_bias=leaves[3] if case.bias else None,
        )
        return [out.detach(), *torch.autograd.grad(out, leaves, gradient.to(case.dtype))]

    names = ["output", "query", "key", "value", *(["bias"] if case.bias else [])]
    # The bias's gradient is added up by atomics; the libraries promise nothing.
    repeatable = set(names) - {"bias"} if case.backend is Backend.TRITON else set()
    return names, wanted, ours, repeatable


def _elementwise(case: Elementwise, device: torch.device) -> Prepared:
    generator = torch.Generator(device).manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(case.dtype)

    rows, width = case.rows, case.width
    leaves: list[Tensor]
    if case.operation == "rms_norm":
        weight, count = 1 + draw(width) / 10, 2 if "residual" in case.detail else 1
        trained = "trained" in case.detail
        leaves = [draw(rows, width) for _ in range(count)] + ([weight] if trained else [])

        def compute(of: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
            scale = inputs[count] if trained else weight.to(inputs[0].dtype)
            residual = inputs[1] if count == 2 else None
            both: tuple[Tensor, ...] = of(inputs[0], residual, scale, 1e-6)
            return both if count == 2 else both[:1]

        functions = (elementwise.add_rms_norm, plain.add_rms_norm_reference)
    elif case.operation == "gated_act":
        leaves = [draw(rows, width), draw(rows, width)]

        def compute(of: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
            return (of(*inputs, case.detail),)

        functions = (elementwise.gated_act, plain.gated_act_reference)
    else:
        leaves = [draw(rows, 4, width), draw(rows, 2, width)]
        cos, sin = draw(rows + 8, width), draw(rows + 8, width)
        positions = torch.arange(rows, device=device).flip(0) + 5 if case.detail else None

        def compute(of: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
            tables = (cos.to(inputs[0].dtype), sin.to(inputs[0].dtype))
            both: tuple[Tensor, ...] = of(*inputs, *tables, positions)
            return both

        functions = (elementwise.rope, plain.rope_reference)

    def outcome(of: Any, inputs: list[Tensor]) -> list[Tensor]:
        inputs = [each.detach().requires_grad_() for each in inputs]
        outputs = compute(of, *inputs)
        sent = [gradients[number].to(out.dtype) for number, out in enumerate(outputs)]
        found = torch.autograd.grad(outputs, inputs, sent)
        return [*(out.detach() for out in outputs), *found]

    shapes = [tuple(out.shape) for out in compute(functions[1], *leaves)]
    gradients = [draw(*shape) for shape in shapes]
    names = [f"output {number}" for number in range(len(shapes))]
    names += [f"gradient {number}" for number in range(len(leaves))]
    wanted = outcome(functions[1], [each.double() for each in leaves])
    return names, wanted, lambda: outcome(functions[0], leaves), set(names)
