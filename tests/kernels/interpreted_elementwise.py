"""Triton's elementwise kernels against the fp64 reference; `test_interpreted` runs this file."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ibtrain.kernels import triton_elementwise_operators as operators
from ibtrain.kernels.elementwise import WIDEST_NORM, add_rms_norm, gated_act, rms_norm, rope
from ibtrain.kernels.reference_elementwise import (
    Activation,
    add_rms_norm_reference,
    gated_act_reference,
    rope_reference,
)
from ibtrain.kernels.triton_support import interpreted

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # numpy's
EPS = 1e-6
FORWARD = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}
GRADIENT = FORWARD | {torch.bfloat16: 1.2e-2}
each_dtype = pytest.mark.parametrize("dtype", FORWARD, ids=lambda dtype: str(dtype)[6:])
Function = Callable[..., Tensor | tuple[Tensor, ...]]
Outcome = tuple[list[Tensor], list[Tensor]]
"""Outputs, and the gradients of the inputs."""


def draw(seed: int, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape
    difference, scale = (got.double() - wanted).norm().item(), wanted.norm().item()
    return difference / scale if scale else difference


def outcome(function: Function, inputs: list[Tensor]) -> Outcome:
    """Outputs and the gradients of all inputs, each output weighted by a fixed draw."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    outputs = [out] if isinstance(out, Tensor) else list(out)
    # Drawn in bf16, so that every dtype is sent the same gradients.
    weights = [draw(100 + i, torch.bfloat16, *y.shape).to(y.dtype) for i, y in enumerate(outputs)]
    return outputs, list(torch.autograd.grad(outputs, leaves, weights))


def same(one: Outcome, other: Outcome) -> bool:
    pairs = zip(one[0] + one[1], other[0] + other[1], strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def agree(ours: Function, reference: Function, inputs: list[Tensor]) -> Outcome:
    """Our outcome, held against the reference in fp64 and, bitwise, against its repetition."""
    dtype = inputs[0].dtype
    outputs, gradients = outcome(ours, inputs)
    wanted, wanted_gradients = outcome(reference, [x.double() for x in inputs])
    for i, (got, want) in enumerate(zip(outputs, wanted, strict=True)):
        assert got.dtype == dtype and got.is_contiguous()
        assert error(got, want) <= FORWARD[dtype], f"output {i}"
    for i, (got, want) in enumerate(zip(gradients, wanted_gradients, strict=True)):
        assert got.dtype == dtype
        assert error(got, want) <= GRADIENT[dtype], f"gradient {i}"
    assert same((outputs, gradients), outcome(ours, inputs))
    return outputs, gradients


def is_ours(out: Tensor) -> bool:
    assert out.grad_fn is not None
    return "ibtrain" in out.grad_fn.name()


def test_the_interpreter_is_on() -> None:
    assert interpreted()
    x, w = draw(1, torch.float32, 3, 8).requires_grad_(), draw(2, torch.float32, 8)
    cos = torch.ones(3, 8)
    assert is_ours(rms_norm(x, w, EPS))
    assert is_ours(add_rms_norm(x, x, w, EPS)[1])
    assert is_ours(gated_act(x, x, "silu"))
    assert is_ours(rope(x[:, None], x[:, None], cos, cos)[0])
    assert not is_ours(rms_norm(x.double(), w.double(), EPS))


SHAPES = [(0, 64), (1, 40), (31, 88), (33, 88), (5, 4096), (2, 5120)]


@each_dtype
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_add_rms_norm(dtype: torch.dtype, rows: int, width: int) -> None:
    inputs = [draw(1, dtype, rows, width), draw(2, dtype, rows, width), draw(3, dtype, width)]
    agree(
        lambda x, residual, weight: add_rms_norm(x, residual, weight, EPS),
        lambda x, residual, weight: add_rms_norm_reference(x, residual, weight, EPS),
        inputs,
    )


def test_add_rms_norm_where_a_program_takes_several_rows() -> None:
    test_add_rms_norm(torch.float32, 257, 64)


@each_dtype
@pytest.mark.parametrize(("rows", "width"), [(0, 40), (33, 88), (3, 4096)])
def test_norm_without_a_residual(dtype: torch.dtype, rows: int, width: int) -> None:
    agree(
        lambda x, weight: add_rms_norm(x, None, weight, EPS),
        lambda x, weight: add_rms_norm_reference(x, None, weight, EPS),
        [draw(1, dtype, rows, width), draw(2, dtype, width)],
    )


@each_dtype
def test_the_sum_and_its_rounding_are_the_reference_s(dtype: torch.dtype) -> None:
    x, residual, weight = draw(1, dtype, 33, 88), draw(2, dtype, 33, 88), draw(3, dtype, 88)
    _, total = add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(total, residual + x)
    assert add_rms_norm(x, None, weight, EPS)[1] is x


@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)])
def test_each_output_of_the_norm_may_stand_alone(used: tuple[int, ...]) -> None:
    agree(
        lambda x, r, w: tuple(add_rms_norm(x, r, w, EPS)[i] * w for i in used),
        lambda x, r, w: tuple(add_rms_norm_reference(x, r, w, EPS)[i] * w for i in used),
        [draw(1, torch.float32, 5, 40), draw(2, torch.float32, 5, 40), draw(3, torch.float32, 40)],
    )


def test_leading_shapes_and_strides() -> None:
    wide = draw(1, torch.float32, 2, 3, 5, 80)
    turned = draw(2, torch.float32, 40, 5, 3, 2)
    weight = draw(3, torch.float32, 80)
    agree(
        lambda x, r, w: add_rms_norm(x[..., :40], r.permute(3, 2, 1, 0), w[::2], EPS),
        lambda x, r, w: add_rms_norm_reference(x[..., :40], r.permute(3, 2, 1, 0), w[::2], EPS),
        [wide, turned, weight],
    )
    agree(
        lambda x, r: gated_act(x[..., 40:], r.permute(3, 2, 1, 0), "gelu"),
        lambda x, r: gated_act_reference(x[..., 40:], r.permute(3, 2, 1, 0), "gelu"),
        [wide, turned],
    )
    one_row = draw(4, torch.float32, 88)
    agree(lambda x: gated_act(x, x, "silu"), lambda x: gated_act_reference(x, x, "silu"), [one_row])


def test_a_frozen_weight_gets_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    backward = operators.rms_norm_backward_op

    def watched(*arguments: object) -> tuple[Tensor, Tensor]:
        asked.append(arguments[-1])
        d_x, d_weight = backward(*arguments)
        assert (d_weight.numel() > 0) == arguments[-1]
        return d_x, d_weight

    monkeypatch.setattr(operators, "rms_norm_backward_op", watched)
    gradients = []
    for trained in (False, True):
        x, residual = draw(1, torch.float32, 33, 88), draw(2, torch.float32, 33, 88)
        x.requires_grad_()
        weight = draw(3, torch.float32, 88).requires_grad_(trained)
        sum(y.sum() for y in add_rms_norm(x, residual, weight, EPS)).backward()
        assert (weight.grad is not None) == trained
        gradients.append(x.grad)
    assert asked == [False, True]
    assert torch.equal(*gradients)


def test_a_row_too_wide_for_registers_goes_to_the_reference() -> None:
    x = draw(1, torch.float32, 1, WIDEST_NORM + 8).requires_grad_()
    weight = draw(2, torch.float32, WIDEST_NORM + 8)
    assert not is_ours(rms_norm(x, weight, EPS))


HEADS = [(0, 4, 4, 64, True), (1, 1, 1, 40, True), (2, 40, 8, 64, False), (31, 3, 1, 88, True)]
HEADS += [(1, 40, 40, 128, True), (5, 17, 17, 128, False)]


@each_dtype
@pytest.mark.parametrize(("rows", "heads", "key_heads", "width", "placed"), HEADS)
def test_rope(
    dtype: torch.dtype, rows: int, heads: int, key_heads: int, width: int, placed: bool
) -> None:
    cos, sin = draw(3, dtype, rows + 7, width), draw(4, dtype, rows + 7, width)
    generator = torch.Generator().manual_seed(5)
    positions = torch.randint(rows + 7, (rows,), generator=generator) if placed else None
    inputs = [draw(1, dtype, rows, heads, width), draw(2, dtype, rows, key_heads, width)]

    def reference(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return rope_reference(query, key, cos.to(query.dtype), sin.to(query.dtype), positions)

    ours = agree(lambda query, key: rope(query, key, cos, sin, positions), reference, inputs)
    # Rounded where transformers rounds: the very same bits, forward and backward.
    assert same(ours, outcome(reference, inputs))


def test_rope_of_many_rows() -> None:
    query, key = draw(1, torch.float32, 257, 1, 64), draw(2, torch.float32, 257, 1, 64)
    cos, sin = draw(3, torch.float32, 257, 64), draw(4, torch.float32, 257, 64)
    for got, wanted in zip(
        rope(query, key, cos, sin), rope_reference(query, key, cos, sin), strict=True
    ):
        assert torch.equal(got, wanted)


def test_rope_of_strided_rows() -> None:
    projected = draw(1, torch.float32, 9, 6 * 40)
    cos, sin = draw(3, torch.float32, 40, 12).T[:12].T, draw(4, torch.float32, 12, 40).T
    positions = torch.arange(18, dtype=torch.int32)[::2]

    def split(rows: Tensor) -> tuple[Tensor, Tensor]:
        heads = rows.view(9, 6, 40)
        return heads[:, :4, :12], heads[:, 4:, 1:25:2]

    agree(
        lambda x: rope(*split(x), cos, sin, positions),
        lambda x: rope_reference(*split(x), cos.to(x.dtype), sin.to(x.dtype), positions),
        [projected],
    )


@each_dtype
@pytest.mark.parametrize("kind", Activation)
@pytest.mark.parametrize(("rows", "width"), [(0, 40), (1, 40), (31, 88), (3, 4096)])
def test_gated_act(dtype: torch.dtype, kind: Activation, rows: int, width: int) -> None:
    agree(
        lambda gate, up: gated_act(gate, up, kind),
        lambda gate, up: gated_act_reference(gate, up, kind),
        [draw(1, dtype, rows, width) * 3, draw(2, dtype, rows, width)],
    )


def test_gated_act_of_many_rows() -> None:
    test_gated_act(torch.float32, Activation.SILU, 257, 64)


@pytest.mark.parametrize("kind", Activation)
def test_gates_far_from_zero(kind: Activation) -> None:
    gate = torch.tensor([-1e4, -90.0, -20.0, -5.0, 0.0, 5.0, 20.0, 90.0, 1e4])
    agree(
        lambda gate, up: gated_act(gate, up, kind),
        lambda gate, up: gated_act_reference(gate, up, kind),
        [gate, torch.ones(9)],
    )
    assert torch.isfinite(gated_act(gate, torch.ones(9), kind)).all()


@pytest.mark.parametrize("trained", [False, True])
def test_operators_are_registered_as_torch_wants_them(trained: bool) -> None:
    x, residual = (draw(i, torch.float32, 3, 40).requires_grad_() for i in (1, 2))
    weight = draw(3, torch.float32, 40).requires_grad_(trained)
    plain = x.detach(), residual.detach()
    rstd = torch.ones(3)
    torch.library.opcheck(operators.rms_norm_op.registered, (x, weight, EPS))
    torch.library.opcheck(operators.add_rms_norm_op.registered, (x, residual, weight, EPS))
    for d_total in (None, plain[1]):
        arguments = (plain[0], d_total, plain[1], weight.detach(), rstd, trained)
        torch.library.opcheck(operators.rms_norm_backward_op.registered, arguments)
    query, key = x.view(3, 5, 8), residual[:, :16].view(3, 2, 8)
    cos, sin = draw(4, torch.float32, 6, 8), draw(5, torch.float32, 6, 8)
    positions = torch.tensor([5, 0, 3]) if trained else None
    rotated = (query.detach().requires_grad_(), key.detach().requires_grad_())
    torch.library.opcheck(operators.rope_op.registered, (*rotated, cos, sin, positions, False))
    torch.library.opcheck(operators.gated_act_op.registered, (x, residual, "silu"))
    torch.library.opcheck(operators.gated_act_backward_op.registered, (*plain, plain[0], "gelu"))


def block(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    normed, total = add_rms_norm(x, residual, weight, EPS)
    cos = torch.cos(torch.arange(9.0)[:, None] * torch.arange(8.0))
    query, key = rope(normed.view(9, 5, 8), total.view(9, 5, 8), cos, cos, torch.arange(9))
    return gated_act(query, key, "silu")


def block_inputs() -> list[Tensor]:
    return [
        draw(1, torch.float32, 9, 40),
        draw(2, torch.float32, 9, 40),
        draw(3, torch.float32, 40),
    ]


def test_what_is_called_directly_is_what_torch_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    direct = outcome(block, block_inputs())
    assert all(out.grad_fn is not None for out in direct[0])
    asked = []
    monkeypatch.setattr(
        "ibtrain.kernels.operators._is_looked_at", lambda tensor: asked.append(tensor) or True
    )
    assert same(direct, outcome(block, block_inputs()))
    assert len(asked) == 6  # three operations, forward and backward
    with torch.no_grad():
        assert torch.equal(direct[0][0], block(*block_inputs()))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_nothing(reentrant: bool) -> None:
    plain = outcome(block, block_inputs())

    def checkpointed(*inputs: Tensor) -> Tensor:
        out: Tensor = checkpoint(block, *inputs, use_reentrant=reentrant)
        return out

    if not reentrant:
        assert same(plain, outcome(checkpointed, block_inputs()))
        return
    leaves = [x.requires_grad_() for x in block_inputs()]
    out = checkpointed(*leaves)
    out.backward(draw(100, torch.bfloat16, *out.shape).to(out.dtype))
    assert same(plain, ([out], [x.grad for x in leaves if x.grad is not None]))


def test_torch_compile_sees_through() -> None:
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    assert same(outcome(block, block_inputs()), outcome(compiled, block_inputs()))
