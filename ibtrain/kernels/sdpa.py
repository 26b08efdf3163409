"""Packed attention through torch's scaled_dot_product_attention, which knows rectangles only.

Sequences of one length are a rectangle already; others are padded and masked. For the CPU, and for
a GPU that nothing else runs on.

Shapes: T packed query rows, S packed key rows, B sequences, H query heads, G key heads,
K head width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ibtrain.kernels.packed import Packed


def padded_attention(
    packed: Packed,
    *,
    causal: bool,
    scale: float,
    rel_bias: Tensor | None,
    dropout_p: float,
) -> Tensor:
    """As `ibtrain.kernels.varlen_attention`, which checks everything: [T, H, K]."""
    queries, keys = packed.max_query, packed.max_key
    whole = (packed.sequences * queries, packed.sequences * keys)
    uniform = whole == (packed.query_THK.shape[0], packed.key_SGK.shape[0])
    options = {"dropout_p": dropout_p, "scale": scale, "enable_gqa": packed.group > 1}
    bias_Hqk = None if rel_bias is None else _bias_by_distance(rel_bias, queries, keys)
    if uniform and not (causal and queries != keys):
        return _uniform(packed, causal, bias_Hqk, options)
    return _padded(packed, causal, bias_Hqk, options)


def _bias_by_distance(rel_bias: Tensor, max_query: int, max_key: int) -> Tensor:
    """The table [H, 2R+1] laid out for every pair of positions [H, q, k]."""
    reach = rel_bias.shape[1] // 2
    row = torch.arange(max_query, device=rel_bias.device)
    column = torch.arange(max_key, device=rel_bias.device)
    distance_qk = (column - row[:, None]).clamp(-reach, reach) + reach
    return rel_bias[:, distance_qk]


def _uniform(
    packed: Packed, causal: bool, bias_Hqk: Tensor | None, options: dict[str, Any]
) -> Tensor:
    """All sequences are equally long: packing is a reshape and no padding is needed."""
    query, key, value = (
        rows.unflatten(0, (packed.sequences, longest)).transpose(1, 2)
        for rows, longest in zip(
            packed[:3], (packed.max_query, packed.max_key, packed.max_key), strict=True
        )
    )
    if bias_Hqk is not None:
        bias_Hqk = bias_Hqk.to(query.dtype)
        if causal:
            seen_qk = torch.ones(bias_Hqk.shape[1:], dtype=torch.bool, device=query.device).tril()
            bias_Hqk = bias_Hqk.masked_fill(~seen_qk, torch.finfo(query.dtype).min)
        options = options | {"attn_mask": bias_Hqk[None]}
        causal = False
    out = functional.scaled_dot_product_attention(query, key, value, is_causal=causal, **options)
    return out.transpose(1, 2).flatten(0, 1)


def _padded(
    packed: Packed, causal: bool, bias_Hqk: Tensor | None, options: dict[str, Any]
) -> Tensor:
    """Sequences of different lengths: laid out in a padded block for SDPA and taken back."""
    query_THK, key_SGK, value_SGK, cu_query, cu_key, max_query, max_key = packed
    sequences = packed.sequences
    query_slots = _slots(cu_query, max_query, query_THK.shape[0])
    key_slots = query_slots if cu_key is cu_query else _slots(cu_key, max_key, key_SGK.shape[0])
    query = _pad(query_THK, query_slots, sequences * max_query)
    key = _pad(key_SGK, key_slots, sequences * max_key)
    value = _pad(value_SGK, key_slots, sequences * max_key)

    column = torch.arange(max_key, device=query.device)
    key_length_B = cu_key.diff()
    seen = (column < key_length_B[:, None])[:, None, None, :]
    if causal:
        row = torch.arange(max_query, device=query.device)
        last_seen_Bq = row + (key_length_B - cu_query.diff())[:, None]
        seen = seen & (column <= last_seen_Bq[:, :, None])[:, None]
    mask = seen
    if bias_Hqk is not None:
        # Not minus infinity: its gradient is not a number in the rows of padding.
        lowest = torch.finfo(query.dtype).min
        mask = bias_Hqk.to(query.dtype)[None].masked_fill(~seen, lowest)
    out = functional.scaled_dot_product_attention(
        query.unflatten(0, (sequences, max_query)).transpose(1, 2),
        key.unflatten(0, (sequences, max_key)).transpose(1, 2),
        value.unflatten(0, (sequences, max_key)).transpose(1, 2),
        attn_mask=mask,
        **options,
    )
    # A row that sees no key is a softmax over nothing: 0 by definition here.
    out = out.masked_fill(~seen.any(dim=-1, keepdim=True), 0.0)
    return _unpad(out.transpose(1, 2).flatten(0, 1), query_slots)


def _slots(cumulative: Tensor, longest: int, rows: int) -> Tensor:
    """For each packed row [T], its row in a padded block of B * longest rows."""
    lengths_B = cumulative.diff().long()
    index_B = torch.arange(lengths_B.numel(), device=cumulative.device)
    sequence_T = torch.repeat_interleave(index_B, lengths_B, output_size=rows)
    position_T = torch.arange(rows, device=cumulative.device) - cumulative.long()[sequence_T]
    return sequence_T * longest + position_T


def _pad(rows: Tensor, slots: Tensor, total: int) -> Tensor:
    padded: Tensor = _Pad.apply(rows, slots, total)  # type: ignore[no-untyped-call]
    return padded


def _unpad(block: Tensor, slots: Tensor) -> Tensor:
    rows: Tensor = _Unpad.apply(block, slots)  # type: ignore[no-untyped-call]
    return rows


class _Pad(torch.autograd.Function):
    """Rows to their slots in a block of zeros. The backward is a gather: torch's own backward of
    the equivalent indexing is a scatter-add, several times slower on a CPU.
    """

    @staticmethod
    def forward(context: Any, rows: Tensor, slots: Tensor, total: int) -> Tensor:
        context.save_for_backward(slots)
        return rows.new_zeros(total, *rows.shape[1:]).index_copy_(0, slots, rows)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        (slots,) = context.saved_tensors
        return gradients[0].index_select(0, slots), None, None


class _Unpad(torch.autograd.Function):
    """The inverse of `_Pad`: slots are distinct, so its backward is a copy, not an addition."""

    @staticmethod
    def forward(context: Any, block: Tensor, slots: Tensor) -> Tensor:
        context.save_for_backward(slots)
        context.total = block.shape[0]
        return block.index_select(0, slots)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        (slots,) = context.saved_tensors
        gradient = gradients[0]
        block = gradient.new_zeros(context.total, *gradient.shape[1:])
        return block.index_copy_(0, slots, gradient), None
