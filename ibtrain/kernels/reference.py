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
) -> Tensor:
    """softmax(q k^T * scale + bias) v within each sequence; returns [T, H, K].

    `cu_query` and `cu_key` [B+1] are cumulative lengths from 0. Causal is bottom-right aligned: the
    last query row sees the last key row. `rel_bias` [H, 2R+1] is read at clamp(j - i, -R, R) + R
    for query i and key j. A row without keys gives 0.
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
            for row in range(queries):
                for column in range(keys):
                    distance = max(-reach, min(reach, column - row))
                    scores_Hqk[:, row, column] += rel_bias[:, distance + reach]
        seen_qk = torch.ones(queries, keys, dtype=torch.bool, device=query_THK.device)
        if causal:
            seen_qk = seen_qk.tril(keys - queries)
        scores_Hqk = scores_Hqk.masked_fill(~seen_qk, float("-inf"))
        weights_Hqk = torch.softmax(scores_Hqk, dim=-1)
        weights_Hqk = torch.where(seen_qk, weights_Hqk, torch.zeros_like(weights_Hqk))
        pieces.append(torch.einsum("hqk,khd->qhd", weights_Hqk, value_kHK))
    return torch.cat(pieces) if pieces else query_THK.new_zeros(query_THK.shape)
