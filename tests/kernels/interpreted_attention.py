"""The attention kernels under Triton's interpreter, against the reference in fp64.

Run by test_interpreted.py in a process of its own (TRITON_INTERPRET=1).
"""

import random
from dataclasses import dataclass
from itertools import accumulate, product

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ibtrain.kernels import varlen_attention
from ibtrain.kernels.reference import kept_weights, varlen_attention_reference
from ibtrain.kernels.triton_attention_launch import attention, attention_backward

# ||error|| / ||reference||, forward and gradients.
TOLERANCES = {
    torch.float32: (2e-6, 2e-6),
    torch.float16: (1e-3, 1e-3),
    torch.bfloat16: (6e-3, 1.2e-2),
}
LENGTHS = (0, 1, 31, 32, 33, 257, 300)
SEED = (3 << 40) + 12345


@dataclass(frozen=True)
class Case:
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    heads: int = 2
    key_heads: int = 2
    width: int = 64
    dtype: torch.dtype = torch.float32
    causal: bool = False
    reach: int | None = None
    dropout_p: float = 0.0
    scale: float | None = None

    def __str__(self):
        return repr(self)


def cumulative(lengths):
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def inputs_of(case: Case) -> tuple[list[Tensor], Tensor]:
    """Query, key, value (and bias) of the case's dtype but held in fp64, and a gradient."""
    torch.manual_seed(1)
    count, source = sum(case.queries), sum(case.keys)
    shapes = [(count, case.heads), (source, case.key_heads), (source, case.key_heads)]
    leaves = [torch.randn(*shape, case.width).to(case.dtype).double() for shape in shapes]
    if case.reach is not None:
        leaves.append(torch.randn(case.heads, 2 * case.reach + 1).double())
    gradient = torch.randn(count, case.heads, case.width).to(case.dtype).double()
    return [leaf.requires_grad_() for leaf in leaves], gradient


def expected(case: Case) -> list[Tensor]:
    """The output and every gradient, by the reference."""
    leaves, gradient = inputs_of(case)
    out = varlen_attention_reference(
        *leaves[:3],
        cumulative(case.queries),
        cumulative(case.keys),
        causal=case.causal,
        scale=case.scale,
        rel_bias=leaves[3] if len(leaves) > 3 else None,
        dropout_p=case.dropout_p,
        seed=SEED,
    )
    return [out, *torch.autograd.grad(out, leaves, gradient)]


def computed(case: Case) -> list[Tensor]:
    """The output and every gradient, by the kernels."""
    leaves, gradient = inputs_of(case)
    dtypes = [case.dtype] * 3 + [torch.float32]
    ours = [
        leaf.detach().to(dtype).requires_grad_()
        for leaf, dtype in zip(leaves, dtypes, strict=False)
    ]
    out = varlen_attention(
        *ours[:3],
        cumulative(case.queries),
        cumulative(case.keys),
        max(case.queries),
        max(case.keys),
        causal=case.causal,
        scale=case.scale,
        rel_bias=ours[3] if len(ours) > 3 else None,
        dropout_p=case.dropout_p,
        seed=SEED,
    )
    assert out.dtype == case.dtype
    return [out, *torch.autograd.grad(out, ours, gradient.to(case.dtype))]


def check(case: Case) -> None:
    forward, backward = TOLERANCES[case.dtype]
    names = ("output", "query", "key", "value", "bias")
    for name, got, wanted in zip(names, computed(case), expected(case), strict=False):
        error = (got.double() - wanted).norm() / wanted.norm()
        assert error <= (forward if name == "output" else backward), f"{name}: {error:.2e}"


def drawn(number: int) -> Case:
    """A case drawn at random: 1-40 heads, lengths from LENGTHS, an empty sequence among others."""
    draw = random.Random(number)
    dropout_p = draw.choice((0.0, 0.0, 0.1, 0.5))
    key_heads = draw.choice((1, 2, 3, 5, 10))
    heads = key_heads * draw.choice((1, 1, 2, 4))
    if dropout_p:  # Philox takes the interpreter long
        key_heads, heads = 1, draw.choice((1, 2))
    most = 900 if heads <= 2 and not dropout_p else 400 if heads <= 6 else 100
    queries, keys = [], []
    for _ in range(draw.randrange(1, 6)):
        pair = draw.choice(LENGTHS), draw.choice(LENGTHS)
        if sum(queries) + pair[0] <= most and sum(keys) + pair[1] <= most:
            queries.append(pair[0])
            keys.append(pair[1])
    # One sequence of some length, or gradients near nothing are all there is to compare.
    place = draw.randrange(len(queries) + 1)
    queries.insert(place, draw.choice((33, 64)))
    keys.insert(place, draw.choice((65, 80)))
    return Case(
        queries=(*queries, 0),
        keys=(*keys, draw.choice((0, 5))),
        heads=heads,
        key_heads=key_heads,
        width=draw.choice((8, 40, 64, 80, 88, 96, 128)),
        dtype=draw.choice(tuple(TOLERANCES)),
        causal=draw.random() < 0.5,
        reach=draw.choice((None, None, 5, 40, 128)),
        dropout_p=dropout_p,
        scale=draw.choice((None, 0.3)),
    )


@pytest.mark.parametrize("number", range(20))
def test_a_drawn_case_equals_the_reference(number):
    check(drawn(number))


@pytest.mark.parametrize(("dtype", "width"), product(TOLERANCES, (64, 80, 88, 96, 128)), ids=str)
def test_every_dtype_and_width_with_everything_on(dtype, width):
    check(Case((33, 0, 40), (70, 3, 40), 4, 2, width, dtype, causal=True, reach=7, dropout_p=0.2))


@pytest.mark.parametrize("length", LENGTHS)
def test_every_length_causal_and_not(length):
    for causal in (False, True):
        check(Case((length, 34), (length, 35), 1, 1, 64, causal=causal))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_many_queries_of_a_single_key(dtype):
    """Their gradients are nothing; rounding must not become something."""
    check(Case((257, 40), (1, 66), 2, 2, 64, dtype, dropout_p=0.1))
    check(Case((257, 40), (1, 66), 2, 2, 88, dtype, reach=4))


@pytest.mark.parametrize("further", [31, 62, 63, 64, 127])
def test_the_causal_edge_at_the_edge_of_a_block(further):
    """Keys that are `further` more than queries: the first row's last key ends a block, or not."""
    check(Case((140,), (140 + further,), 1, 1, 64, torch.float16, causal=True))


def test_forty_heads_with_one_key_head():
    check(Case((32,), (33,), 40, 1, 64))


def test_queries_beyond_the_keys_give_nothing():
    """Bottom-right: with 3 keys and 5 queries the first two see no key."""
    case = Case((5, 40), (3, 40), 2, 2, 16, causal=True)
    check(case)
    out, query_gradient, *_ = computed(case)
    assert not out[:2].any()
    assert not query_gradient[:2].any()
    assert out[2:].any(dim=-1).all()


def test_large_scores_and_a_large_bias_stay_finite():
    case = Case((70,), (70,), 2, 2, 64, causal=True, reach=3, scale=40.0)
    leaves, gradient = inputs_of(case)
    ours = [leaf.detach().float().requires_grad_() for leaf in leaves]
    rows = cumulative(case.queries)
    out = varlen_attention(
        *ours[:3], rows, rows, 70, 70, causal=True, scale=40.0, rel_bias=ours[3] * 400
    )
    for tensor in (out, *torch.autograd.grad(out, ours, gradient.float())):
        assert tensor.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_repeated_runs_are_bitwise_equal_but_for_the_bias(dtype):
    case = Case((70, 33), (40, 66), 2, 1, 64, dtype, reach=9, dropout_p=0.1)
    first, second = computed(case), computed(case)
    for got, again in zip(first[:4], second[:4], strict=True):
        assert torch.equal(got, again)
    torch.testing.assert_close(first[4], second[4], rtol=1e-5, atol=1e-6)


def test_the_mask_of_the_forward_is_that_of_the_backward():
    """Values of one-hot rows bring the weights out; a key that was dropped gets no gradient."""
    rows, width = cumulative((20, 12)), 16
    query, key = torch.zeros(32, 2, width), torch.zeros(32, 2, width)
    value = torch.zeros(32, 2, width)
    for place in range(16):
        value[place, :, place] = 1.0  # the first sixteen keys of the first sequence
    value.requires_grad_()
    out = varlen_attention(query, key, value, rows, rows, 20, 20, dropout_p=0.5, seed=SEED)
    kept_Hqk = kept_weights(SEED, (2, 20, 20), 0, 0.5)
    assert torch.equal(out[:20].permute(1, 0, 2) > 0, kept_Hqk[:, :, :16])
    assert 0.35 < kept_Hqk.float().mean() < 0.65
    for row in (0, 7):
        (gradient,) = torch.autograd.grad(out[row].sum(), value, retain_graph=True)
        assert torch.equal(gradient[:20, :, 0].t() > 0, kept_Hqk[:, row])


def test_a_seed_from_torchs_generator_is_drawn_again_by_checkpointing():
    rows = cumulative((40,))
    query = torch.randn(40, 2, 16, requires_grad=True)

    def attend(rows_THK):
        return varlen_attention(rows_THK, rows_THK, rows_THK, rows, rows, 40, 40, dropout_p=0.3)

    gradients = []
    for run in (attend, lambda tensor: checkpoint(attend, tensor, use_reentrant=False)):
        torch.manual_seed(7)
        gradients.append(torch.autograd.grad(run(query).square().sum(), query)[0])
    assert torch.equal(*gradients)
    torch.manual_seed(8)
    other = torch.autograd.grad(attend(query).square().sum(), query)[0]
    assert not torch.equal(gradients[0], other)


def test_rows_of_a_fused_projection_are_taken_as_they_lie():
    fused = torch.randn(50, 3, 2, 88, requires_grad=True)
    rows = cumulative((30, 20))
    out = varlen_attention(*fused.unbind(1), rows, rows, 30, 30)
    apart = [tensor.contiguous() for tensor in fused.detach().unbind(1)]
    assert torch.equal(out, varlen_attention(*apart, rows, rows, 30, 30))
    turned = fused.detach().transpose(0, 2).contiguous().transpose(0, 2)  # heads far apart
    assert torch.equal(out, varlen_attention(*turned.unbind(1), rows, rows, 30, 30))


def test_nothing_at_all():
    rows = cumulative((0, 0))
    empty = torch.randn(0, 2, 64, requires_grad=True)
    out = varlen_attention(empty, empty, empty, rows, rows, 0, 0)
    assert out.shape == (0, 2, 64)
    assert torch.autograd.grad(out.sum(), empty)[0].shape == (0, 2, 64)


def test_no_gradient_of_a_bias_that_needs_none():
    case = Case((40,), (40,), reach=4)
    leaves, gradient = inputs_of(case)
    ours = [leaf.detach().float().requires_grad_(place < 3) for place, leaf in enumerate(leaves)]
    rows = cumulative(case.queries)
    out = varlen_attention(*ours[:3], rows, rows, 40, 40, rel_bias=ours[3])
    out.backward(gradient.float())
    assert ours[3].grad is None
    for leaf, wanted in zip(ours[:3], expected(case)[1:4], strict=True):
        assert (leaf.grad.double() - wanted).norm() / wanted.norm() < 2e-6


def arguments_of(case: Case):
    leaves, _ = inputs_of(case)
    query, key, value, bias = (leaf.detach().float().requires_grad_() for leaf in leaves)
    places = (cumulative(case.queries), cumulative(case.keys), max(case.queries), max(case.keys))
    seed = torch.tensor([SEED])
    return (query, key, value, *places, case.causal, 0.125, bias, 0.1, seed)


def test_torch_takes_the_operators_as_whole():
    case = Case((20, 5), (20, 7), 2, 1, 16, causal=True, reach=3, dropout_p=0.1)
    arguments = arguments_of(case)
    torch.library.opcheck(attention.registered, arguments)
    out, log_totals = attention(*arguments)
    query, key, value, cu_query, cu_key, *numbers, bias, dropout_p, seed = (
        part.detach() if isinstance(part, Tensor) else part for part in arguments
    )
    saved = (query, key, value, cu_query, cu_key, out.detach(), log_totals.detach())
    torch.library.opcheck(
        attention_backward.registered,
        (torch.ones_like(out), *saved, *numbers, bias, dropout_p, seed, False),
    )


def test_torch_compile_sees_one_whole_graph():
    case = Case((20, 5), (20, 7), 2, 1, 16, causal=True, reach=3)
    query, key, value, cu_query, cu_key, *_, bias, _, _ = arguments_of(case)

    def attend(query, key, value, bias):
        return varlen_attention(
            query * 2, key, value, cu_query, cu_key, 20, 20, causal=True, rel_bias=bias
        )

    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    results = []
    for run in (attend, compiled):
        out = run(query, key, value, bias)
        leaves = (query, key, value, bias)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for eager, whole in zip(*results, strict=True):
        torch.testing.assert_close(whole, eager, rtol=1e-5, atol=1e-6)
