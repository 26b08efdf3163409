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
def _bias_places(bias, rows, columns, head, reach):
    """The places in the table of [H, 2R+1] that hold the bias of each pair."""
    distance = columns[None, :] - rows[:, None]
    return bias + head * (2 * reach + 1) + tl.minimum(tl.maximum(distance, -reach), reach) + reach


@triton.jit
def _bias_MN(bias, rows, columns, head, reach):
    """The bias of each pair, from a table so small that it stays in the first cache.

    Read in assembly: Triton would copy every value asynchronously through shared memory, 4 bytes at
    a time, for several blocks ahead (over 130 KB, and 400 bytes of spilled registers).
    """
    places = _bias_places(bias, rows, columns, head, reach)
    if INTERPRETED:
        return tl.load(places)
    return tl.inline_asm_elementwise(
        "ld.global.nc.f32 $0, [$1];", "=f,l", [places], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def _kept_MN(seed, head, first_row, first_column, threshold, M: tl.constexpr, N: tl.constexpr):
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
def _rows(base, stride, rows, length, WIDTH: tl.constexpr, K: tl.constexpr, WHOLE: tl.constexpr):
    """[rows, K] of a packed tensor; zeros beyond the head width and, unless WHOLE, the length."""
    channels = tl.arange(0, K)
    places = base + rows[:, None] * stride + channels[None, :]
    if WHOLE and WIDTH == K:
        return tl.load(places)
    if WHOLE:
        return tl.load(places, mask=channels[None, :] < WIDTH, other=0.0)
    if WIDTH == K:
        return tl.load(places, mask=rows[:, None] < length, other=0.0)
    return tl.load(places, mask=(rows[:, None] < length) & (channels[None, :] < WIDTH), other=0.0)


@triton.jit
def _store_rows(base, stride, rows, length, values, WIDTH: tl.constexpr, K: tl.constexpr):
    channels = tl.arange(0, K)
    tl.store(
        base + rows[:, None] * stride + channels[None, :],
        rounded(values, base.dtype.element_ty).to(base.dtype.element_ty),
        mask=(rows[:, None] < length) & (channels[None, :] < WIDTH),
    )


@triton.jit
def _key_range(
    first_row,
    query_length,
    key_length,
    M: tl.constexpr,
    N: tl.constexpr,
    CAUSAL: tl.constexpr,
    SPLIT: tl.constexpr,
):
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
def _visible(rows, columns, query_length, key_length, CAUSAL: tl.constexpr):
    visible = (columns < key_length) & (rows < query_length)
    if CAUSAL:
        visible = visible & (columns <= rows + (key_length - query_length))
    return visible


@triton.jit
def _forward_step(
    accumulated,
    highest,
    total,
    query_MK,
    key,
    value,
    bias,
    seed,
    key_stride,
    value_stride,
    first_row,
    first_packed_row,
    first_column,
    query_length,
    key_length,
    head,
    scale,
    reach,
    threshold,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    CAUSAL: tl.constexpr,
    BIAS: tl.constexpr,
    DROPOUT: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """One block of keys more in the running softmax."""
    rows = first_row + tl.arange(0, M)
    columns = first_column + tl.arange(0, N)
    key_NK = _rows(key, key_stride, columns, key_length, WIDTH, K, WHOLE)
    scores_MN = dot(query_MK, tl.trans(key_NK)) * (scale * LOG2_E)
    if BIAS:
        scores_MN += _bias_MN(bias, rows, columns, head, reach) * LOG2_E
    if not WHOLE:
        visible = _visible(rows[:, None], columns[None, :], query_length, key_length, CAUSAL)
        scores_MN = tl.where(visible, scores_MN, float("-inf"))
    higher = tl.maximum(highest, tl.max(scores_MN, 1))
    base = higher
    if not WHOLE:
        base = tl.where(higher == float("-inf"), 0.0, higher)  # a row that has seen no key yet
    weights_MN = tl.exp2(scores_MN - base[:, None])
    fading = tl.exp2(highest - base)
    total = total * fading + tl.sum(weights_MN, 1)
    if DROPOUT:
        kept = _kept_MN(seed, head, first_packed_row, first_column, threshold, M, N)
        weights_MN = tl.where(kept, weights_MN, 0.0)
    value_NK = _rows(value, value_stride, columns, key_length, WIDTH, K, WHOLE)
    accumulated = accumulated * fading[:, None]
    accumulated += dot(weights_MN, value_NK)
    return accumulated, higher, total


@triton.jit
def attention_forward(
    query,
    key,
    value,
    bias,
    seed_place,
    cu_query,
    cu_key,
    out,
    log_totals,
    query_stride,
    key_stride,
    value_stride,
    out_stride,
    packed_rows,
    group,
    scale,
    reach,
    threshold,
    kept_scale,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    CAUSAL: tl.constexpr,
    BIAS: tl.constexpr,
    DROPOUT: tl.constexpr,
    SPLIT: tl.constexpr,
):
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
        seed = tl.load(seed_place)
    query += query_begin.to(tl.int64) * query_stride + head * WIDTH
    key += key_begin.to(tl.int64) * key_stride + (head // group) * WIDTH
    value += key_begin.to(tl.int64) * value_stride + (head // group) * WIDTH
    out += query_begin.to(tl.int64) * out_stride + head * WIDTH
    rows = first_row + tl.arange(0, M)
    query_MK = _rows(query, query_stride, rows, query_length, WIDTH, K, False)
    accumulated = tl.zeros((M, K), tl.float32)
    highest = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    whole, end = _key_range(first_row, query_length, key_length, M, N, CAUSAL, SPLIT)
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
    _store_rows(out, out_stride, rows, query_length, accumulated / divisor[:, None], WIDTH, K)
    tl.store(
        log_totals + head.to(tl.int64) * packed_rows + query_begin + rows,
        tl.where(seen, highest + tl.log2(divisor), 0.0),
        mask=rows < query_length,
    )


@triton.jit
def attention_delta(
    out,
    gradient,
    delta,
    out_stride,
    gradient_stride,
    packed_rows,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
    M: tl.constexpr,
):
    """Each row's sum of output x gradient [H, T]: what the softmax's backward takes off."""
    head = tl.program_id(1)
    begin = tl.program_id(0).to(tl.int64) * M
    rows = tl.arange(0, M)
    left = packed_rows - begin
    out_MK = _rows(out + begin * out_stride + head * WIDTH, out_stride, rows, left, WIDTH, K, False)
    gradient_MK = _rows(
        gradient + begin * gradient_stride + head * WIDTH,
        gradient_stride,
        rows,
        left,
        WIDTH,
        K,
        False,
    )
    sums = tl.sum(out_MK.to(tl.float32) * gradient_MK.to(tl.float32), 1)
    tl.store(delta + head.to(tl.int64) * packed_rows + begin + rows, sums, mask=rows < left)


@triton.jit
def attention_backward_key(
    query,
    key,
    value,
    bias,
    seed_place,
    cu_query,
    cu_key,
    gradient,
    log_totals,
    delta,
    key_gradient,
    value_gradient,
    query_stride,
    key_stride,
    value_stride,
    gradient_stride,
    key_gradient_stride,
    packed_rows,
    group,
    scale,
    reach,
    threshold,
    kept_scale,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    CAUSAL: tl.constexpr,
    BIAS: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """Gradients of one block of keys and values, over all queries of all heads that read them."""
    key_head = tl.program_id(1)
    sequence = tl.program_id(2)
    query_begin = tl.load(cu_query + sequence)
    key_begin = tl.load(cu_key + sequence)
    query_length = tl.load(cu_query + sequence + 1) - query_begin
    key_length = tl.load(cu_key + sequence + 1) - key_begin
    first_column = tl.program_id(0) * N
    if first_column >= key_length:
        return
    seed = 0
    if DROPOUT:
        seed = tl.load(seed_place)
    columns = first_column + tl.arange(0, N)
    key += key_begin.to(tl.int64) * key_stride + key_head * WIDTH
    value += key_begin.to(tl.int64) * value_stride + key_head * WIDTH
    key_NK = _rows(key, key_stride, columns, key_length, WIDTH, K, False)
    value_NK = _rows(value, value_stride, columns, key_length, WIDTH, K, False)
    key_sum = tl.zeros((N, K), tl.float32)
    value_sum = tl.zeros((N, K), tl.float32)
    begin = 0
    if CAUSAL:  # the first row that sees the first column
        begin = tl.maximum(first_column - (key_length - query_length), 0) // M * M
    for member in range(0, group):
        head = key_head * group + member
        query_rows = query + query_begin.to(tl.int64) * query_stride + head * WIDTH
        gradient_rows = gradient + query_begin.to(tl.int64) * gradient_stride + head * WIDTH
        numbers = head.to(tl.int64) * packed_rows + query_begin
        for first_row in range(begin, query_length, M):
            rows = first_row + tl.arange(0, M)
            inside = rows < query_length
            query_MK = _rows(query_rows, query_stride, rows, query_length, WIDTH, K, False)
            scores_NM = dot(key_NK, tl.trans(query_MK)) * (scale * LOG2_E)
            if BIAS:
                bias_MN = _bias_MN(bias, rows, columns, head, reach)
                scores_NM += tl.trans(bias_MN) * LOG2_E
            log_total = tl.load(log_totals + numbers + rows, mask=inside, other=0.0)
            weights_NM = tl.exp2(scores_NM - log_total[None, :])
            # Rows beyond the end weigh nothing: their gradient was read as zeros. Only a large
            # bias could make that infinity times zero.
            if CAUSAL or BIAS:
                visible = _visible(
                    rows[None, :], columns[:, None], query_length, key_length, CAUSAL
                )
                weights_NM = tl.where(visible, weights_NM, 0.0)
            gradient_MK = _rows(gradient_rows, gradient_stride, rows, query_length, WIDTH, K, False)
            weight_gradient_NM = dot(value_NK, tl.trans(gradient_MK))
            applied_NM = weights_NM
            if DROPOUT:
                kept = tl.trans(
                    _kept_MN(seed, head, query_begin + first_row, first_column, threshold, M, N).to(
                        tl.int32
                    )
                )
                applied_NM = tl.where(kept != 0, weights_NM * kept_scale, 0.0)
                weight_gradient_NM = tl.where(kept != 0, weight_gradient_NM * kept_scale, 0.0)
            value_sum += dot(applied_NM, gradient_MK)
            taken_off = tl.load(delta + numbers + rows, mask=inside, other=0.0)
            score_gradient_NM = weights_NM * (weight_gradient_NM - taken_off[None, :])
            key_sum += dot(score_gradient_NM, query_MK)
    places = key_begin.to(tl.int64) * key_gradient_stride + key_head * WIDTH
    _store_rows(
        key_gradient + places, key_gradient_stride, columns, key_length, key_sum * scale, WIDTH, K
    )
    _store_rows(
        value_gradient + places, key_gradient_stride, columns, key_length, value_sum, WIDTH, K
    )


@triton.jit
def _backward_query_step(
    query_sum,
    query_MK,
    gradient_MK,
    log_total,
    taken_off,
    key,
    value,
    bias,
    bias_gradient,
    seed,
    key_stride,
    value_stride,
    first_row,
    first_packed_row,
    first_column,
    query_length,
    key_length,
    head,
    scale,
    reach,
    threshold,
    kept_scale,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    CAUSAL: tl.constexpr,
    BIAS: tl.constexpr,
    BIAS_GRADIENT: tl.constexpr,
    DROPOUT: tl.constexpr,
    WHOLE: tl.constexpr,
):
    rows = first_row + tl.arange(0, M)
    columns = first_column + tl.arange(0, N)
    key_NK = _rows(key, key_stride, columns, key_length, WIDTH, K, WHOLE)
    value_NK = _rows(value, value_stride, columns, key_length, WIDTH, K, WHOLE)
    scores_MN = dot(query_MK, tl.trans(key_NK)) * (scale * LOG2_E)
    if BIAS:
        scores_MN += _bias_MN(bias, rows, columns, head, reach) * LOG2_E
    weights_MN = tl.exp2(scores_MN - log_total[:, None])
    if not WHOLE or BIAS:  # a large bias on a row beyond the end would be infinity times zero
        visible = _visible(rows[:, None], columns[None, :], query_length, key_length, CAUSAL)
        weights_MN = tl.where(visible, weights_MN, 0.0)
    weight_gradient_MN = dot(gradient_MK, tl.trans(value_NK))
    if DROPOUT:
        kept = _kept_MN(seed, head, first_packed_row, first_column, threshold, M, N)
        weight_gradient_MN = tl.where(kept, weight_gradient_MN * kept_scale, 0.0)
    if not WHOLE:
        # With few keys `delta` and the weights' gradients cancel, and rounding the output is all
        # that is left: where one block holds all keys the sum is at hand, unrounded.
        exact = tl.sum(weights_MN * weight_gradient_MN, 1)
        taken_off = tl.where(key_length < N, exact, taken_off)
    score_gradient_MN = weights_MN * (weight_gradient_MN - taken_off[:, None])
    if BIAS_GRADIENT:
        inside = (rows[:, None] < query_length) & (columns[None, :] < key_length)
        tl.atomic_add(
            _bias_places(bias_gradient, rows, columns, head, reach),
            score_gradient_MN,
            mask=inside,
            sem="relaxed",
        )
    query_sum += dot(score_gradient_MN, key_NK)
    return query_sum, taken_off


@triton.jit
def attention_backward_query(
    query,
    key,
    value,
    bias,
    seed_place,
    cu_query,
    cu_key,
    gradient,
    log_totals,
    delta,
    query_gradient,
    bias_gradient,
    query_stride,
    key_stride,
    value_stride,
    gradient_stride,
    query_gradient_stride,
    packed_rows,
    group,
    scale,
    reach,
    threshold,
    kept_scale,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    CAUSAL: tl.constexpr,
    BIAS: tl.constexpr,
    BIAS_GRADIENT: tl.constexpr,
    DROPOUT: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Gradients of one block of queries, `delta` where it is known better, and, added up over all programs, of the bias [H, 2R+1].

    The bias gradient is added by atomics, in the order in which programs come by: repeated runs
    differ in its last bits. Everything else is bitwise the same in every run.
    """
    head = tl.program_id(1)
    sequence = tl.program_id(2)
    query_begin = tl.load(cu_query + sequence)
    key_begin = tl.load(cu_key + sequence)
    query_length = tl.load(cu_query + sequence + 1) - query_begin
    key_length = tl.load(cu_key + sequence + 1) - key_begin
    first_row = (tl.num_programs(0) - 1 - tl.program_id(0)) * M
    if first_row >= query_length:
        return
    seed = 0
    if DROPOUT:
        seed = tl.load(seed_place)
    query += query_begin.to(tl.int64) * query_stride + head * WIDTH
    gradient += query_begin.to(tl.int64) * gradient_stride + head * WIDTH
    key += key_begin.to(tl.int64) * key_stride + (head // group) * WIDTH
    value += key_begin.to(tl.int64) * value_stride + (head // group) * WIDTH
    query_gradient += query_begin.to(tl.int64) * query_gradient_stride + head * WIDTH
    rows = first_row + tl.arange(0, M)
    inside = rows < query_length
    numbers = head.to(tl.int64) * packed_rows + query_begin
    query_MK = _rows(query, query_stride, rows, query_length, WIDTH, K, False)
    gradient_MK = _rows(gradient, gradient_stride, rows, query_length, WIDTH, K, False)
    log_total = tl.load(log_totals + numbers + rows, mask=inside, other=0.0)
    taken_off = tl.load(delta + numbers + rows, mask=inside, other=0.0)
    query_sum = tl.zeros((M, K), tl.float32)
    whole, end = _key_range(first_row, query_length, key_length, M, N, CAUSAL, SPLIT)
    packed_row = query_begin + first_row
    for first_column in range(0, whole, N):
        query_sum, taken_off = _backward_query_step(
            query_sum, query_MK, gradient_MK, log_total, taken_off, key, value, bias,
            bias_gradient, seed, key_stride, value_stride, first_row, packed_row, first_column,
            query_length, key_length, head, scale, reach, threshold, kept_scale,
            WIDTH, K, M, N, CAUSAL, BIAS, BIAS_GRADIENT, DROPOUT, True,
        )  # fmt: skip
    for first_column in range(whole, end, N):
        query_sum, taken_off = _backward_query_step(
            query_sum, query_MK, gradient_MK, log_total, taken_off, key, value, bias,
            bias_gradient, seed, key_stride, value_stride, first_row, packed_row, first_column,
            query_length, key_length, head, scale, reach, threshold, kept_scale,
            WIDTH, K, M, N, CAUSAL, BIAS, BIAS_GRADIENT, DROPOUT, False,
        )  # fmt: skip
    tl.store(delta + numbers + rows, taken_off, mask=inside & (key_length < N))
    _store_rows(
        query_gradient, query_gradient_stride, rows, query_length, query_sum * scale, WIDTH, K
    )
