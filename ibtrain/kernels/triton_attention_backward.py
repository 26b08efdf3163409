"""Attention over packed sequences in Triton: the backward. See triton_attention.py.

Three kernels: `attention_delta`, then the queries' gradients (and the bias's), then the keys' and
values'. Weights are computed again from the scores and the forward's `log_totals`.

Shapes: M query rows and N key rows of a block, K head width (a power of two, padded with zeros).
"""

import triton
import triton.language as tl

from ibtrain.kernels.triton_attention import (
    LOG2_E,
    bias_addresses,
    draw_kept,
    is_visible,
    key_range,
    load_rows,
    read_bias,
    store_rows,
)
from ibtrain.kernels.triton_numbers import dot


@triton.jit
def attention_delta(
    out: tl.tensor,
    gradient: tl.tensor,
    delta: tl.tensor,
    out_stride: tl.tensor,
    gradient_stride: tl.tensor,
    packed_rows: tl.tensor,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
    M: tl.constexpr,
) -> None:
    """Each row's sum of output x gradient [H, T]: what the softmax's backward takes off."""
    head = tl.program_id(1)
    begin = tl.program_id(0).to(tl.int64) * M
    rows = tl.arange(0, M)
    left = packed_rows - begin
    out_MK = load_rows(
        out + begin * out_stride + head * WIDTH, out_stride, rows, left, WIDTH, K, False
    )
    gradient_MK = load_rows(
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
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    bias: tl.tensor,
    seed_address: tl.tensor,
    cu_query: tl.tensor,
    cu_key: tl.tensor,
    gradient: tl.tensor,
    log_totals: tl.tensor,
    delta: tl.tensor,
    key_gradient: tl.tensor,
    value_gradient: tl.tensor,
    query_stride: tl.tensor,
    key_stride: tl.tensor,
    value_stride: tl.tensor,
    gradient_stride: tl.tensor,
    key_gradient_stride: tl.tensor,
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
) -> None:
    """Gradients of one block of keys and values, over all queries of one head that reads them.

    Where several heads read them, their sum is taken afterwards: a loop over those heads in here
    spills registers on some cards, and leaves fewer programs to run.
    """
    head = tl.program_id(1)
    key_head = head // group
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
        seed = tl.load(seed_address)
    columns = first_column + tl.arange(0, N)
    key += key_begin.to(tl.int64) * key_stride + key_head * WIDTH
    value += key_begin.to(tl.int64) * value_stride + key_head * WIDTH
    key_NK = load_rows(key, key_stride, columns, key_length, WIDTH, K, False)
    value_NK = load_rows(value, value_stride, columns, key_length, WIDTH, K, False)
    key_sum = tl.zeros((N, K), tl.float32)
    value_sum = tl.zeros((N, K), tl.float32)
    begin = 0
    if CAUSAL:  # the first row that sees the first column
        begin = tl.maximum(first_column - (key_length - query_length), 0) // M * M
    query_rows = query + query_begin.to(tl.int64) * query_stride + head * WIDTH
    gradient_rows = gradient + query_begin.to(tl.int64) * gradient_stride + head * WIDTH
    numbers = head.to(tl.int64) * packed_rows + query_begin
    for first_row in range(begin, query_length, M):
        rows = first_row + tl.arange(0, M)
        inside = rows < query_length
        query_MK = load_rows(query_rows, query_stride, rows, query_length, WIDTH, K, False)
        scores_NM = dot(key_NK, tl.trans(query_MK)) * (scale * LOG2_E)
        if BIAS:
            added_MN = read_bias(bias, rows, columns, head, reach)
            scores_NM += tl.trans(added_MN) * LOG2_E
        log_total = tl.load(log_totals + numbers + rows, mask=inside, other=0.0)
        weights_NM = tl.exp2(scores_NM - log_total[None, :])
        # Rows beyond the end weigh nothing: their gradient was read as zeros. Only a large
        # bias could make that infinity times zero.
        if CAUSAL or BIAS:
            seen = is_visible(rows[None, :], columns[:, None], query_length, key_length, CAUSAL)
            weights_NM = tl.where(seen, weights_NM, 0.0)
        gradient_MK = load_rows(gradient_rows, gradient_stride, rows, query_length, WIDTH, K, False)
        weight_gradient_NM = dot(value_NK, tl.trans(gradient_MK))
        applied_NM = weights_NM
        if DROPOUT:
            kept = tl.trans(
                draw_kept(seed, head, query_begin + first_row, first_column, threshold, M, N).to(
                    tl.int32
                )
            )
            applied_NM = tl.where(kept != 0, weights_NM * kept_scale, 0.0)
            weight_gradient_NM = tl.where(kept != 0, weight_gradient_NM * kept_scale, 0.0)
        value_sum += dot(applied_NM, gradient_MK)
        taken_off = tl.load(delta + numbers + rows, mask=inside, other=0.0)
        score_gradient_NM = weights_NM * (weight_gradient_NM - taken_off[None, :])
        key_sum += dot(score_gradient_NM, query_MK)
    offsets = key_begin.to(tl.int64) * key_gradient_stride + head * WIDTH
    store_rows(
        key_gradient + offsets, key_gradient_stride, columns, key_length, key_sum * scale, WIDTH, K
    )
    store_rows(
        value_gradient + offsets, key_gradient_stride, columns, key_length, value_sum, WIDTH, K
    )


@triton.jit
def _backward_query_step(
    query_sum: tl.tensor,
    query_MK: tl.tensor,
    gradient_MK: tl.tensor,
    log_total: tl.tensor,
    taken_off: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    bias: tl.tensor,
    bias_gradient: tl.tensor,
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
    kept_scale: tl.tensor,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    CAUSAL: tl.constexpr,
    BIAS: tl.constexpr,
    BIAS_GRADIENT: tl.constexpr,
    DROPOUT: tl.constexpr,
    WHOLE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    rows = first_row + tl.arange(0, M)
    columns = first_column + tl.arange(0, N)
    key_NK = load_rows(key, key_stride, columns, key_length, WIDTH, K, WHOLE)
    value_NK = load_rows(value, value_stride, columns, key_length, WIDTH, K, WHOLE)
    scores_MN = dot(query_MK, tl.trans(key_NK)) * (scale * LOG2_E)
    if BIAS:
        scores_MN += read_bias(bias, rows, columns, head, reach) * LOG2_E
    weights_MN = tl.exp2(scores_MN - log_total[:, None])
    if not WHOLE or BIAS:  # a large bias on a row beyond the end would be infinity times zero
        seen = is_visible(rows[:, None], columns[None, :], query_length, key_length, CAUSAL)
        weights_MN = tl.where(seen, weights_MN, 0.0)
    weight_gradient_MN = dot(gradient_MK, tl.trans(value_NK))
    if DROPOUT:
        kept = draw_kept(seed, head, first_packed_row, first_column, threshold, M, N)
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
            bias_addresses(bias_gradient, rows, columns, head, reach),
            score_gradient_MN,
            mask=inside,
            sem="relaxed",
        )
    query_sum += dot(score_gradient_MN, key_NK)
    return query_sum, taken_off


@triton.jit
def attention_backward_query(
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    bias: tl.tensor,
    seed_address: tl.tensor,
    cu_query: tl.tensor,
    cu_key: tl.tensor,
    gradient: tl.tensor,
    log_totals: tl.tensor,
    delta: tl.tensor,
    query_gradient: tl.tensor,
    bias_gradient: tl.tensor,
    query_stride: tl.tensor,
    key_stride: tl.tensor,
    value_stride: tl.tensor,
    gradient_stride: tl.tensor,
    query_gradient_stride: tl.tensor,
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
    BIAS_GRADIENT: tl.constexpr,
    DROPOUT: tl.constexpr,
    SPLIT: tl.constexpr,
) -> None:
    """Gradients of one block of queries and, over all programs, of the bias [H, 2R+1].

    Where one block holds all keys, `delta` is written anew: the sum is known there unrounded.
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
        seed = tl.load(seed_address)
    query += query_begin.to(tl.int64) * query_stride + head * WIDTH
    gradient += query_begin.to(tl.int64) * gradient_stride + head * WIDTH
    key += key_begin.to(tl.int64) * key_stride + (head // group) * WIDTH
    value += key_begin.to(tl.int64) * value_stride + (head // group) * WIDTH
    query_gradient += query_begin.to(tl.int64) * query_gradient_stride + head * WIDTH
    rows = first_row + tl.arange(0, M)
    inside = rows < query_length
    numbers = head.to(tl.int64) * packed_rows + query_begin
    query_MK = load_rows(query, query_stride, rows, query_length, WIDTH, K, False)
    gradient_MK = load_rows(gradient, gradient_stride, rows, query_length, WIDTH, K, False)
    log_total = tl.load(log_totals + numbers + rows, mask=inside, other=0.0)
    taken_off = tl.load(delta + numbers + rows, mask=inside, other=0.0)
    query_sum = tl.zeros((M, K), tl.float32)
    whole, end = key_range(first_row, query_length, key_length, M, N, CAUSAL, SPLIT)
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
    store_rows(
        query_gradient, query_gradient_stride, rows, query_length, query_sum * scale, WIDTH, K
    )
