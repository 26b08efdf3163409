import math
from itertools import accumulate

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ibtrain.kernels import varlen_attention
from ibtrain.kernels.reference import varlen_attention_reference

LENGTHS = st.lists(
    st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=6
)  # (queries, keys) of each sequence


def cumulative(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def rows(count: int, heads: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, heads, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def compare(
    queries: list[int],
    keys: list[int],
    *,
    heads: int = 2,
    key_heads: int = 2,
    width: int = 4,
    causal: bool = False,
    scale: float | None = None,
    reach: int | None = None,
) -> Tensor:
    """Our output after it and all gradients were found equal to the reference's; with a bias by
    distance where `reach` is given."""
    inputs = (
        rows(sum(queries), heads, width, 1),
        rows(sum(keys), key_heads, width, 2),
        rows(sum(keys), key_heads, width, 3),
    )
    bias = None if reach is None else rows(heads, 2 * reach + 1, 1, 5)
    rel_bias = None if bias is None else bias[..., 0]
    options = {"causal": causal, "scale": scale, "rel_bias": rel_bias}
    cu_query, cu_key = cumulative(queries), cumulative(keys)
    ours = varlen_attention(*inputs, cu_query, cu_key, max(queries), max(keys), **options)
    reference = varlen_attention_reference(*inputs, cu_query, cu_key, **options)
    inputs += () if bias is None else (bias,)
    assert ours.shape == (sum(queries), heads, width)
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)
    weight = rows(sum(queries), heads, width, 4).detach()
    for name, leaf, got, wanted in zip(
        ("query", "key", "value", "bias")[: len(inputs)],
        inputs,
        torch.autograd.grad((ours * weight).sum(), inputs, allow_unused=True),
        torch.autograd.grad((reference * weight).sum(), inputs, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(
            torch.zeros_like(leaf) if got is None else got,
            torch.zeros_like(leaf) if wanted is None else wanted,
            rtol=1e-11,
            atol=1e-12,
            msg=lambda text, name=name: f"gradient of {name}: {text}",
        )
    return ours


@settings(max_examples=150, deadline=None)
@given(
    lengths=LENGTHS,
    heads=st.sampled_from([(1, 1), (3, 3), (4, 2), (6, 1)]),
    width=st.sampled_from([1, 5, 8]),
    causal=st.booleans(),
    scale=st.sampled_from([None, 0.3]),
    reach=st.sampled_from([None, 0, 2, 9]),
)
@example(
    lengths=[(3, 3), (0, 0), (5, 5)], heads=(2, 2), width=4, causal=True, scale=None, reach=None
)
@example(lengths=[(0, 0)], heads=(2, 2), width=4, causal=False, scale=None, reach=None)
@example(lengths=[(1, 1)], heads=(2, 2), width=4, causal=True, scale=None, reach=None)
@example(lengths=[(5, 5), (5, 5)], heads=(4, 2), width=4, causal=True, scale=1.0, reach=2)
@example(lengths=[(5, 0), (0, 3)], heads=(2, 2), width=4, causal=False, scale=1.0, reach=2)
@example(lengths=[(3, 0), (3, 0)], heads=(2, 2), width=4, causal=False, scale=None, reach=None)
@example(lengths=[(3, 0), (3, 5)], heads=(4, 2), width=4, causal=False, scale=None, reach=None)
@example(lengths=[(5, 2), (5, 2)], heads=(2, 2), width=4, causal=True, scale=None, reach=None)
@example(lengths=[(2, 5), (2, 5)], heads=(2, 2), width=4, causal=True, scale=None, reach=None)
def test_equals_the_reference(lengths, heads, width, causal, scale, reach):
    queries, keys = [pair[0] for pair in lengths], [pair[1] for pair in lengths]
    compare(
        queries,
        keys,
        heads=heads[0],
        key_heads=heads[1],
        width=width,
        causal=causal,
        scale=scale,
        reach=reach,
    )


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6), causal=st.booleans())
def test_self_attention_equals_the_reference(lengths, causal):
    compare(lengths, lengths, causal=causal)
    compare(lengths, lengths, causal=causal, reach=3)


@settings(max_examples=30, deadline=None)
@given(
    sequences=st.integers(1, 4),
    queries=st.integers(0, 6),
    keys=st.integers(0, 6),
    causal=st.booleans(),
)
def test_uniform_lengths_equal_the_reference(sequences, queries, keys, causal):
    compare([queries] * sequences, [keys] * sequences, causal=causal, heads=4, key_heads=2)


def test_the_vision_head_width_and_the_cross_shape_of_a_qformer():
    compare([17, 17], [17, 17], heads=2, key_heads=2, width=88)
    compare([32, 32, 32], [10, 10, 10], heads=3, key_heads=3, width=64)


def test_no_sequences():
    empty = torch.zeros(0, 2, 4)
    zero = torch.zeros(1, dtype=torch.int32)
    assert varlen_attention(empty, empty, empty, zero, zero, 0, 0).shape == (0, 2, 4)


def test_the_reference_by_hand():
    """Two sequences of widths one; scores are ln 3 and 0, so weights are 3/4 and 1/4."""
    query = torch.tensor([[[1.0]], [[1.0]]])
    key = torch.tensor([[[math.log(3.0)]], [[0.0]], [[5.0]]])
    value = torch.tensor([[[8.0]], [[4.0]], [[-1.0]]])
    cu_query, cu_key = cumulative([1, 1]), cumulative([2, 1])
    expected = torch.tensor([[[7.0]], [[-1.0]]])
    for out in (
        varlen_attention_reference(query, key, value, cu_query, cu_key),
        varlen_attention(query, key, value, cu_query, cu_key, 1, 2),
    ):
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(
    ("queries", "keys", "expected"),
    [
        (3, 3, [1.0, 1.5, 2.0]),  # row i sees keys 0..i, values 1, 2, 3 with equal weights
        (2, 4, [2.0, 2.5]),  # the last row sees the last key
        (4, 2, [0.0, 0.0, 1.0, 1.5]),  # the first two rows see nothing
    ],
)
def test_causal_is_aligned_to_the_bottom_right(queries, keys, expected):
    query = torch.zeros(queries, 1, 2)
    key = torch.zeros(keys, 1, 2)
    value = torch.arange(1.0, keys + 1)[:, None, None].expand(keys, 1, 2)
    arguments = (query, key, value, cumulative([queries]), cumulative([keys]))
    wanted = torch.tensor(expected)[:, None, None].expand(queries, 1, 2)
    reference = varlen_attention_reference(*arguments, causal=True)
    torch.testing.assert_close(reference, wanted)
    ours = varlen_attention(*arguments, queries, keys, causal=True)
    torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("keys", [[0, 3], [0, 0]])
def test_rows_without_keys_give_zero_and_finite_gradients(keys):
    out = compare([2, 2], keys)
    assert (out[:2] == 0).all()
    assert not out.isnan().any()


def test_query_heads_share_key_heads_in_order():
    """Heads 0 and 1 read key head 0, heads 2 and 3 key head 1."""
    query = torch.zeros(1, 4, 1)
    key = torch.zeros(1, 2, 1)
    value = torch.tensor([[[10.0], [20.0]]])
    one = cumulative([1])
    out = varlen_attention(query, key, value, one, one, 1, 1)
    assert out.flatten().tolist() == [10.0, 10.0, 20.0, 20.0]


@pytest.mark.parametrize("lengths", [[50, 50], [30, 70]])
def test_dropout_keeps_the_mean_and_follows_the_generator(lengths):
    query, key = torch.zeros(100, 2, 1), torch.zeros(100, 2, 1)
    value = torch.ones(100, 2, 1)
    cu = cumulative(lengths)
    arguments = (query, key, value, cu, cu, max(lengths), max(lengths))
    torch.manual_seed(5)
    first = varlen_attention(*arguments, dropout_p=0.4)
    torch.manual_seed(5)
    assert torch.equal(first, varlen_attention(*arguments, dropout_p=0.4))
    assert not torch.equal(first, varlen_attention(*arguments, dropout_p=0.4))
    assert first.mean() == pytest.approx(1.0, abs=0.04)
    assert first.std() > 0.05


def call(
    query: tuple[int, ...] = (4, 2, 3),
    key: tuple[int, ...] = (4, 2, 3),
    value: tuple[int, ...] = (4, 2, 3),
    cu_query: tuple[int, ...] = (0, 1, 4),
    cu_key: tuple[int, ...] = (0, 1, 4),
    longest: tuple[int, int] = (3, 3),
    bias: tuple[int, ...] = (2, 5),
) -> Tensor:
    tensors = (torch.zeros(shape) for shape in (query, key, value))
    cumulatives = (torch.tensor(values, dtype=torch.int32) for values in (cu_query, cu_key))
    return varlen_attention(*tensors, *cumulatives, *longest, rel_bias=torch.zeros(bias))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"value": (4, 2, 5)}, r"value \(4, 2, 5\)"),
        ({"value": (5, 2, 3)}, r"value \(5, 2, 3\)"),
        ({"query": (4, 2, 7)}, r"query \(4, 2, 7\)"),
        ({"query": (4, 6)}, r"query \(4, 6\)"),
        ({"query": (4, 3, 3)}, "3 query heads are not a multiple of 2 key heads"),
        ({"key": (4, 0, 3), "value": (4, 0, 3)}, "multiple of 0 key heads"),
        ({"cu_query": (0, 4)}, "cu_query names 1 sequences and cu_key 2"),
        ({"cu_query": (), "cu_key": ()}, r"cu_query is torch.int32 of shape \(0,\)"),
        ({"cu_query": (0, 1, 5)}, r"cu_query must rise from 0 to 4, .* got \[0, 1, 5\]"),
        ({"cu_query": (1, 2, 4)}, r"cu_query .* got \[1, 2, 4\]"),
        ({"cu_key": (0, 5, 4)}, r"cu_key must rise from 0 to 4, .* got \[0, 5, 4\]"),
        ({"cu_key": (0, 1, 3)}, r"cu_key .* got \[0, 1, 3\]"),
        ({"longest": (2, 3)}, r"max_query is 2, .* cu_query \[0, 1, 4\] .* 3"),
        ({"longest": (3, 2)}, r"max_key is 2, .* cu_key \[0, 1, 4\] .* 3"),
        ({"bias": (3, 5)}, r"rel_bias is \(3, 5\); it must be \[2 heads, 2R\+1\]"),
        ({"bias": (2, 4)}, "rel_bias has 4 distances"),
    ],
)
def test_what_does_not_fit_is_named(arguments, said):
    call()
    with pytest.raises(ValueError, match=said):
        call(**arguments)


ROWS = torch.zeros(4, 2, 8)
PLACES = torch.tensor([0, 1, 4])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"key": ROWS.half()},
            "the dtypes differ: query torch.float32, key torch.float16, value torch.float32",
        ),
        ({"query": ROWS.int(), "key": ROWS.int(), "value": ROWS.int()}, "attention of torch.int32"),
        ({"cu_query": PLACES.float()}, r"cu_query is torch.float32 of shape \(3,\)"),
        ({"cu_key": PLACES[None]}, r"cu_key is torch.int64 of shape \(1, 3\)"),
        (
            {"cu_key": PLACES.to("meta")},
            "different devices: query on cpu, key on cpu, value on cpu, cu_query on cpu, cu_key on "
            "meta",
        ),
        ({"value": ROWS.to("meta")}, "query on cpu, key on cpu, value on meta"),
        ({"rel_bias": torch.zeros(2, 3, device="meta")}, "cu_key on cpu, rel_bias on meta"),
        ({"dropout_p": 0.5, "seed": torch.zeros(1, device="meta")}, "cpu, seed on meta"),
        ({"dropout_p": 1.0}, "dropout_p is 1.0; it must be at least 0 and below 1"),
        ({"dropout_p": -0.1}, "dropout_p is -0.1"),
    ],
)
def test_what_is_mixed_up_is_named_with_what_was_found(changed, said):
    given = {
        **{"query": ROWS, "key": ROWS, "value": ROWS, "cu_query": PLACES, "cu_key": PLACES},
        **{"dropout_p": 0.0, "seed": None, "rel_bias": None},
    }
    names = ("query", "key", "value", "cu_query", "cu_key")

    def attend(given):
        options = {name: value for name, value in given.items() if name not in names}
        return varlen_attention(*(given[name] for name in names), 3, 3, **options)

    attend(given)
    with pytest.raises(ValueError, match=said):
        attend(given | changed)


def test_places_in_64_bits_are_as_good():
    query = torch.randn(4, 2, 8)
    both = [varlen_attention(query, query, query, *[p] * 2, 3, 3) for p in (PLACES, PLACES.int())]
    assert torch.equal(*both)
