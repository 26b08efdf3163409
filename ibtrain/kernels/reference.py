"""The semantics of the kernels in plain torch, one sequence at a time.

Slow on purpose: what every backend is tested against, in fp64.

Shapes: T packed query rows, S packed key rows, H query heads, G key heads (H % G == 0),
K head width.
"""

import torch
from torch import Tensor


def varlen_attention_reference(
    query_THK: Tensor,
    key_SGK: Tensor,
    value_SGK: Tensor,
    cu_query: Tensor,
    cu_key: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    rel_bias: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """softmax(q k^T * scale + bias) v within each sequence; returns [T, H, K].

    `cu_query` and `cu_key` [B+1] are cumulative lengths from 0. Causal is bottom-right aligned: the
    last query row sees the last key row. `rel_bias` [H, 2R+1] is read at clamp(j - i, -R, R) + R
    for query i and key j. A row without keys gives 0. Dropout keeps the weights that `kept_weights`
    names and multiplies them by 1 / (1 - dropout_p).
    """
    scale = query_THK.shape[-1] ** -0.5 if scale is None else scale
    groups = query_THK.shape[1] // key_SGK.shape[1]
    pieces = []
    for i in range(cu_query.numel() - 1):
        query_qHK = query_THK[cu_query[i] : cu_query[i + 1]]
        key_kHK = key_SGK[cu_key[i] : cu_key[i + 1]].repeat_interleave(groups, dim=1)
        value_kHK = value_SGK[cu_key[i] : cu_key[i + 1]].repeat_interleave(groups, dim=1)
        queries, keys = query_qHK.shape[0], key_kHK.shape[0]
        scores_Hqk = torch.einsum("qhd,khd->hqk", query_qHK, key_kHK) * scale
        if rel_bias is not None:
            reach = rel_bias.shape[1] // 2
            distance_qk = torch.arange(keys) - torch.arange(queries)[:, None]
            scores_Hqk = scores_Hqk + rel_bias[:, distance_qk.clamp(-reach, reach) + reach]
        seen_qk = torch.ones(queries, keys, dtype=torch.bool, device=query_THK.device)
        if causal:
            seen_qk = seen_qk.tril(keys - queries)
        scores_Hqk = scores_Hqk.masked_fill(~seen_qk, float("-inf"))
        weights_Hqk = torch.softmax(scores_Hqk, dim=-1)
        weights_Hqk = torch.where(seen_qk, weights_Hqk, torch.zeros_like(weights_Hqk))
        if dropout_p > 0:
            first_row = int(cu_query[i])
            kept_Hqk = kept_weights(seed, (len(weights_Hqk), queries, keys), first_row, dropout_p)
            weights_Hqk = weights_Hqk * kept_Hqk.to(weights_Hqk) / (1 - dropout_p)
        pieces.append(torch.einsum("hqk,khd->qhd", weights_Hqk, value_kHK))
    return torch.cat(pieces) if pieces else query_THK.new_zeros(query_THK.shape)


def kept_weights(
    seed: int, shape: tuple[int, int, int], first_row: int, dropout_p: float
) -> Tensor:
    """Which attention weights [H, q, k] dropout keeps: a function of seed and position alone.

    The weight of head h, packed row t = first_row + i and key j is kept where the upper 31 bits of
    word j % 4 of Philox(counter (j // 4, t, h, 0), key seed) are at least dropout_p * 2^31.
    """
    heads, queries, keys = shape
    head = torch.arange(heads)[:, None, None].expand(shape)
    row = (first_row + torch.arange(queries))[None, :, None].expand(shape)
    column = torch.arange(keys)[None, None, :].expand(shape)
    words = torch.stack(philox(seed, (column // 4, row, head, torch.zeros_like(head))))
    word = words.gather(0, (column % 4)[None])[0]
    return word >> 1 >= min(round(dropout_p * 2**31), 2**31 - 1)


def philox(
    seed: int, counter: tuple[Tensor, Tensor, Tensor, Tensor], rounds: int = 7
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox 4x32 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

    Words and counters are of 32 bits, held in int64.
    """
    low_key, high_key = seed & _WORD, seed >> 32 & _WORD
    first, second, third, fourth = counter
    for _ in range(rounds):
        high_third, low_third = _wide_product(0xCD9E8D57, third)
        high_first, low_first = _wide_product(0xD2511F53, first)
        first, second = high_third ^ second ^ low_key, low_third
        third, fourth = high_first ^ fourth ^ high_key, low_first
        low_key, high_key = low_key + 0x9E3779B9 & _WORD, high_key + 0xBB67AE85 & _WORD
    return first, second, third, fourth


_WORD = 0xFFFFFFFF


def _wide_product(factor: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """The upper and lower 32 bits of a product of two words, without passing 63 bits."""
    by_low, by_high = factor * (word & 0xFFFF), factor * (word >> 16)
    middle = (by_low >> 16) + by_high
    return middle >> 16, ((middle & 0xFFFF) << 16) | (by_low & 0xFFFF)
