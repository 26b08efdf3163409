from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb
from transformers.models.t5.modeling_t5 import T5LayerNorm

from ibtrain.kernels.elementwise import add_rms_norm, gated_act, rms_norm, rope
from ibtrain.kernels.reference_elementwise import (
    Activation,
    add_rms_norm_reference,
    gated_act_reference,
    rope_reference,
)

EPS = 1e-6
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
THEIR_NAMES = {
    Activation.SILU: "silu",
    Activation.GELU: "gelu",
    Activation.GELU_TANH: "gelu_new",
}


def draw(seed: int, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def gradients(outputs: tuple[Tensor, ...], leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    weights = [draw(50 + i, y.dtype, *y.shape) for i, y in enumerate(outputs)]
    return torch.autograd.grad(outputs, leaves, weights)


@each_dtype
@pytest.mark.parametrize("module", [LlamaRMSNorm, T5LayerNorm])
@pytest.mark.parametrize("added", [False, True])
def test_the_norm_is_bitwise_transformers(
    dtype: torch.dtype, module: type[torch.nn.Module], added: bool
) -> None:
    x = draw(1, dtype, 2, 33, 88).requires_grad_()
    residual = draw(2, dtype, 2, 33, 88).requires_grad_() if added else None
    theirs = module(88, EPS).to(dtype)
    theirs.weight.data = draw(3, dtype, 88)
    normed, total = add_rms_norm_reference(x, residual, theirs.weight, EPS)
    wanted_total = x if residual is None else residual + x
    wanted = theirs(wanted_total)
    assert torch.equal(total, wanted_total) and normed.dtype == dtype
    assert torch.equal(normed, wanted)
    leaves = (x, theirs.weight, *(() if residual is None else (residual,)))
    for got, want in zip(gradients((normed,), leaves), gradients((wanted,), leaves), strict=True):
        if module is LlamaRMSNorm:
            assert torch.equal(got, want)
        else:  # T5's casts stand in another order, which the backward shows
            error = (got - want).float().norm() / want.float().norm()
            assert error <= (1e-6 if dtype == torch.float32 else 1e-2)


@each_dtype
@pytest.mark.parametrize("placed", [False, True])
def test_rope_is_bitwise_transformers(dtype: torch.dtype, placed: bool) -> None:
    query, key = draw(1, dtype, 33, 4, 88), draw(2, dtype, 33, 2, 88)
    cos, sin = draw(3, dtype, 40, 88), draw(4, dtype, 40, 88)
    positions = torch.arange(33).flip(0) + 5 if placed else torch.arange(33)
    got = rope_reference(query, key, cos, sin, positions if placed else None)
    wanted = apply_rotary_pos_emb(query, key, cos[positions], sin[positions])
    for ours, theirs in zip(got, wanted, strict=True):
        assert torch.equal(ours, theirs)


@each_dtype
@pytest.mark.parametrize("kind", Activation)
def test_activations_are_bitwise_transformers(dtype: torch.dtype, kind: Activation) -> None:
    gate, up = draw(1, dtype, 33, 88) * 3, draw(2, dtype, 33, 88)
    wanted = ACT2FN[THEIR_NAMES[kind]](gate) * up
    assert torch.equal(gated_act_reference(gate, up, kind), wanted)
    assert torch.equal(gated_act_reference(gate, up, kind.value), wanted)


def test_the_reference_has_fp64_gradients() -> None:
    x, residual = draw(1, torch.float64, 3, 8), draw(2, torch.float64, 3, 8)
    weight = draw(3, torch.float64, 8)
    cos, sin = draw(4, torch.float64, 5, 4), draw(5, torch.float64, 5, 4)
    positions = torch.tensor([4, 0, 2])
    inputs = tuple(x.requires_grad_() for x in (x, residual, weight))

    def all_three(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        normed, total = add_rms_norm_reference(x, residual, weight, EPS)
        turned = rope_reference(normed.view(3, 2, 4), total.view(3, 2, 4), cos, sin, positions)
        return tuple(gated_act_reference(*turned, kind) for kind in Activation)

    assert all(y.dtype == torch.float64 for y in all_three(*inputs))
    assert torch.autograd.gradcheck(all_three, inputs)


def test_a_cpu_gets_the_reference() -> None:
    x, weight = draw(1, torch.bfloat16, 5, 8).requires_grad_(), draw(2, torch.bfloat16, 8)
    cos, sin = draw(3, torch.bfloat16, 5, 8), draw(4, torch.bfloat16, 5, 8)
    heads = x[:, None]
    for got, wanted in [
        (add_rms_norm(x, x, weight, EPS), add_rms_norm_reference(x, x, weight, EPS)),
        ((rms_norm(x, weight, EPS),), add_rms_norm_reference(x, None, weight, EPS)[:1]),
        (rope(heads, heads, cos, sin), rope_reference(heads, heads, cos, sin)),
        ((gated_act(x, x, "gelu"),), (gated_act_reference(x, x, "gelu"),)),
    ]:
        for ours, theirs in zip(got, wanted, strict=True):
            assert torch.equal(ours, theirs)
            assert ours.grad_fn is not None and "ibtrain" not in ours.grad_fn.name()


def test_cos_and_sin_get_no_gradient() -> None:
    heads, table = draw(1, torch.float32, 3, 2, 8), draw(2, torch.float32, 3, 8).requires_grad_()
    assert not any(y.requires_grad for y in rope(heads, heads, table, table))


ROWS = torch.zeros(3, 8)
HEADS = torch.zeros(3, 2, 8)
TABLE = torch.zeros(4, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rms_norm(ROWS, ROWS[0].half(), EPS), "x torch.float32, weight torch.float16"),
        (lambda: rms_norm(ROWS.long(), ROWS[0].long(), EPS), "x torch.int64"),
        (lambda: rms_norm(ROWS, ROWS[0].to("meta"), EPS), "x on cpu, weight on meta"),
        (lambda: rms_norm(ROWS, ROWS[0, :7], EPS), r"x \(3, 8\) and weight \(7,\)"),
        (lambda: rms_norm(ROWS[0, 0], ROWS[0], EPS), r"x \(\) and weight \(8,\)"),
        (lambda: rms_norm(ROWS[:, :0], ROWS[0, :0], EPS), r"x \(3, 0\) and weight \(0,\)"),
        (lambda: rms_norm(ROWS, ROWS[0], -1.0), "eps is -1.0"),
        (lambda: add_rms_norm(ROWS, ROWS[:2], ROWS[0], EPS), r"\(3, 8\) and residual \(2, 8\)"),
        (lambda: rope(HEADS, HEADS[:2], TABLE, TABLE), r"query \(3, 2, 8\) and key \(2, 2, 8\)"),
        (lambda: rope(ROWS, HEADS, TABLE, TABLE), r"query \(3, 8\) and key"),
        (lambda: rope(*[HEADS[..., :7]] * 2, *[TABLE[:, :7]] * 2), "head width is 7"),
        (lambda: rope(HEADS, HEADS, TABLE, TABLE[:, :4]), r"cos \(4, 8\) and sin \(4, 4\)"),
        (lambda: rope(HEADS, HEADS, *[TABLE[:2]] * 2), "2 positions, fewer than the 3 rows"),
        (lambda: rope(HEADS, HEADS, TABLE, TABLE.half()), "cos torch.float32, sin torch.float16"),
        (lambda: rope(HEADS, HEADS, TABLE, TABLE, torch.arange(2)), r"positions are \(2,\)"),
        (lambda: rope(HEADS, HEADS, TABLE, TABLE, ROWS[:, 0]), "positions are torch.float32"),
        (lambda: rope(HEADS, HEADS, TABLE, TABLE, torch.arange(3) + 2), "from 2 to 4.* holds 4"),
        (lambda: rope(HEADS, HEADS, TABLE, TABLE, torch.arange(3) - 1), "from -1 to 1"),
        (lambda: gated_act(ROWS, ROWS[:2], "silu"), r"gate \(3, 8\) and up \(2, 8\)"),
        (lambda: gated_act(ROWS, ROWS, "relu"), "'relu' is not known; there are silu, gelu"),
        (lambda: gated_act(ROWS, ROWS.half(), "silu"), "gate torch.float32, up torch.float16"),
    ],
)
def test_errors_show_what_was_found(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
