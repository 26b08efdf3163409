"""Attention over packed sequences in Triton: the kernels, forward and backward.

The forward keeps, beside its output, the base-2 logarithm of each row's softmax denominator; the
backward computes the weights again from it (FlashAttention-2, arXiv 2307.08691). Nothing of the
size queries x keys is ever stored: the causal mask and the lengths are compared, the bias is read
from its table of distances, and dropout is drawn again from Philox's counters.

A program holds one block of rows of one head of one sequence. Sequences lie end to end; a program
beyond the end of its sequence has nothing to do. Rows may be any distance apart, the heads of a row
lie side by side: with a head stride known only at run time, widths such as 88 spill registers and
lose their asynchronous copies.

Shapes: M query rows and N key rows of a block, K head width (a power of two, padded with zeros).
"""

import triton
import triton.language as tl

from ibtrain.kernels.triton_numbers import INTERPRETED, dot, rounded

LOG2_E = tl.constexpr(1.4426950408889634)
PHILOX_ROUNDS = tl.constexpr(7)
"""Seven rounds of Philox 4x32 pass BigCrush (Salmon et al., SC 2011, table 2); ten are the rule
where time does not count."""


@triton.jit
def bias_addresses(
    bias: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    head: tl.tensor,
    reach: tl.tensor,
) -> tl.tensor:
    """The addresses in the table of [H, 2R+1] that hold the bias of each pair."""
    distance = columns[None, :] - rows[:, None]
    return bias + head * (2 * reach + 1) + tl.minimum(tl.maximum(distance, -reach), reach) + reach


@triton.jit
def read_bias(
    bias: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    head: tl.tensor,
    reach: tl.tensor,
) -> tl.tensor:
    """The bias of each pair, from a table so small that it stays in the first cache.

    Read in assembly: Triton would copy every value asynchronously through shared memory, 4 bytes at
    a time, for several blocks ahead (over 130 KB, and 400 bytes of spilled registers).
    """
    addresses = bias_addresses(bias, rows, columns, head, reach)
    if INTERPRETED:
        return tl.load(addresses)
    return tl.inline_asm_elementwise(
        "ld.global.nc.f32 $0, [$1];", "=f,l", [addresses], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def draw_kept(
    seed: tl.tensor,
    head: tl.tensor,
    first_row: tl.tensor,
    first_column: tl.tensor,
    threshold: tl.tensor,
    M: tl.constexpr,
    N: tl.constexpr,
) -> tl.tensor:
    """Which weights of a block dropout keeps: a function of the seed, head, row and column alone.

    One draw of Philox gives the words of four neighbouring columns. The row is counted over the
    packed tensor, the column within the sequence.
    """
    row = first_row + tl.arange(0, M)[:, None] + tl.zeros((M, N // 4), tl.int32)
    column = first_column // 4 + tl.arange(0, N // 4)[None, :] + tl.zeros((M, N // 4), tl.int32)
    zero = tl.zeros((M, N // 4), tl.int32)
    word0, word1, word2, word3 = tl.philox(seed, column, row, zero + head, zero, PHILOX_ROUNDS)
    words = tl.join(tl.join(word0, word2), tl.join(word1, word3))
    return (tl.reshape(words, (M, N)) >> 1).to(tl.int32) >= threshold


@triton.jit
def load_rows(
    base: tl.tensor,
    stride: tl.tensor,
    rows: tl.tensor,
    length: tl.tensor,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
    WHOLE: tl.constexpr,
) -> tl.tensor:
    """[rows, K] of a packed tensor; zeros beyond the head width and, unless WHOLE, the length."""
    channels = tl.arange(0, K)
    cells = base + rows[:, None] * stride + channels[None, :]
    if WHOLE and WIDTH == K:
        return tl.load(cells)
    if WHOLE:
        return tl.load(cells, mask=channels[None, :] < WIDTH, other=0.0)
    if WIDTH == K:
        return tl.load(cells, mask=rows[:, None] < length, other=0.0)
    return tl.load(cells, mask=(rows[:, None] < length) & (channels[None, :] < WIDTH), other=0.0)


@triton.jit
def store_rows(
    base: tl.tensor,
    stride: tl.tensor,
    rows: tl.tensor,
    length: tl.tensor,
    values: tl.tensor,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
) -> None:
    """Rows of a block into a packed tensor, up to its length and head width."""
    channels = tl.arange(0, K)
    tl.store(
        base + rows[:, None] * stride + channels[None, :],
        rounded(values, base.dtype.element_ty).to(base.dtype.element_ty),
        mask=(rows[:, None] < length) & (channels[None, :] < WIDTH),
    )


@triton.jit
def key_range(
    first_row: tl.tensor,
    query_length: tl.tensor,
    key_length: tl.tensor,
    M: tl.constexpr,
    N: tl.constexpr,
    CAUSAL: tl.constexpr,
    SPLIT: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Columns that a block of rows sees: up to `whole` all rows all of them, up to `end` some.

    Unless SPLIT the first are counted with the second: a mask costs nothing beside Philox, and the
    code is half as long.
    """
    whole = key_length
    end = key_length
    if CAUSAL:
        shift = key_length - query_length  # the last query sees the last key
        whole = tl.minimum(whole, tl.maximum(first_row + shift + 1, 0))
        end = tl.minimum(end, tl.maximum(first_row + M + shift, 0))
    if not SPLIT:
        return 0, end
    return whole // N * N, end


@triton.jit
def is_visible(
    rows: tl.tensor,
    columns: tl.tensor,
    query_length: tl.tensor,
    key_length: tl.tensor,
    CAUSAL: tl.constexpr,
) -> tl.tensor:
    """Which pairs are within their sequence and, with a causal mask, not of a later key."""
    visible = (columns < key_length) & (rows < query_length)
    if CAUSAL:
        visible = visible & (columns <= rows + (key_length - query_length))
    return visible


@triton.jit
def _forward_step(
    accumulated: tl.tensor,
    highest: tl.tensor,
    total: tl.tensor,
    query_MK: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    bias: tl.tensor,
    seed: tl.tensor,
    key_stride: tl.tensor,
    value_stride: tl.tensor,
    first_row: tl.tensor,
    first_packed_row: tl.tensor,
    first_column: tl.tensor,
    query_length: tl.tensor,
    key_length: tl.tensor,
    head: tl.tensor,
    scale: tl.tensor,
    reach: tl.tensor,
    threshold: tl.tensor,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    CAUSAL: tl.constexpr,
    BIAS: tl.constexpr,
    DROPOUT: tl.constexpr,
    WHOLE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """One block of keys more in the running softmax."""
    rows = first_row + tl.arange(0, M)
    columns = first_column + tl.arange(0, N)
    key_NK = load_rows(key, key_stride, columns, key_length, WIDTH, K, WHOLE)
    scores_MN = dot(query_MK, tl.trans(key_NK)) * (scale * LOG2_E)
    if BIAS:
        scores_MN += read_bias(bias, rows, columns, head, reach) * LOG2_E
    if not WHOLE:
        seen = is_visible(rows[:, None], columns[None, :], query_length, key_length, CAUSAL)
        scores_MN = tl.where(seen, scores_MN, float("-inf"))
    higher = tl.maximum(highest, tl.max(scores_MN, 1))
    base = higher
    if not WHOLE:
        base = tl.where(higher == float("-inf"), 0.0, higher)  # a row that has seen no key yet
    weights_MN = tl.exp2(scores_MN - base[:, None])
    fading = tl.exp2(highest - base)
    total = total * fading + tl.sum(weights_MN, 1)
    if DROPOUT:
        kept = draw_kept(seed, head, first_packed_row, first_column, threshold, M, N)
        weights_MN = tl.where(kept, weights_MN, 0.0)
    value_NK = load_rows(value, value_stride, columns, key_length, WIDTH, K, WHOLE)
    accumulated = accumulated * fading[:, None]
    accumulated += dot(weights_MN, value_NK)
    return accumulated, higher, total


@triton.jit
def attention_forward(
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    bias: tl.tensor,
    seed_address: tl.tensor,
    cu_query: tl.tensor,
    cu_key: tl.tensor,
    out: tl.tensor,
    log_totals: tl.tensor,
    query_stride: tl.tensor,
    key_stride: tl.tensor,
    value_stride: tl.tensor,
    out_stride: tl.tensor,
    packed_rows: tl.tensor,
    group: tl.tensor,
    scale: tl.tensor,
    reach: tl.tensor,
    threshold: tl.tensor,
    kept_scale: tl.tensor,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    CAUSAL: tl.constexpr,
    BIAS: tl.constexpr,
    DROPOUT: tl.constexpr,
    SPLIT: tl.constexpr,
) -> None:
    """Output [T, H, K] and base-2 log of each row's softmax denominator [H, T]."""
    head = tl.program_id(1)
    sequence = tl.program_id(2)
    query_begin = tl.load(cu_query + sequence)
    key_begin = tl.load(cu_key + sequence)
    query_length = tl.load(cu_query + sequence + 1) - query_begin
    key_length = tl.load(cu_key + sequence + 1) - key_begin
    # With a causal mask the last blocks have the most to do: they begin first.
    first_row = (tl.num_programs(0) - 1 - tl.program_id(0)) * M
    if first_row >= query_length:
        return
    seed = 0
    if DROPOUT:
        seed = tl.load(seed_address)
    query += query_begin.to(tl.int64) * query_stride + head * WIDTH
    key += key_begin.to(tl.int64) * key_stride + (head // group) * WIDTH
    value += key_begin.to(tl.int64) * value_stride + (head // group) * WIDTH
    out += query_begin.to(tl.int64) * out_stride + head * WIDTH
    rows = first_row + tl.arange(0, M)
    query_MK = load_rows(query, query_stride, rows, query_length, WIDTH, K, False)
    accumulated = tl.zeros((M, K), tl.float32)
    highest = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    whole, end = key_range(first_row, query_length, key_length, M, N, CAUSAL, SPLIT)
    packed_row = query_begin + first_row
    for first_column in range(0, whole, N):
        accumulated, highest, total = _forward_step(
            accumulated, highest, total, query_MK, key, value, bias, seed,
            key_stride, value_stride, first_row, packed_row, first_column,
            query_length, key_length, head, scale, reach, threshold,
            WIDTH, K, M, N, CAUSAL, BIAS, DROPOUT, True,
        )  # fmt: skip
    for first_column in range(whole, end, N):
        accumulated, highest, total = _forward_step(
            accumulated, highest, total, query_MK, key, value, bias, seed,
            key_stride, value_stride, first_row, packed_row, first_column,
            query_length, key_length, head, scale, reach, threshold,
            WIDTH, K, M, N, CAUSAL, BIAS, DROPOUT, False,
        )  # fmt: skip
    seen = total > 0.0  # a row that sees no key gives 0
    divisor = tl.where(seen, total, 1.0)
    if DROPOUT:
        accumulated *= kept_scale
    store_rows(out, out_stride, rows, query_length, accumulated / divisor[:, None], WIDTH, K)
    tl.store(
        log_totals + head.to(tl.int64) * packed_rows + query_begin + rows,
        tl.where(seen, highest + tl.log2(divisor), 0.0),
        mask=rows < query_length,
    )
