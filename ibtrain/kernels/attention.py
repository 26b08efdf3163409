"""Attention over packed sequences: the one public function, and its way to a backend.

A micro-batch is one row of T tokens, the sequences end to end; `cu_query` and `cu_key` [B+1] say
where each begins. Vision, the Q-Former (self and cross) and the language model all call this.
Which backend computes it is said by the table in backends.py.

Shapes: T packed query rows, S packed key rows, B sequences, H query heads, G key heads,
K head width.
"""

from itertools import pairwise

import torch
from torch import Tensor

from ibtrain.kernels import libraries
from ibtrain.kernels.backends import AttentionKind, Backend, choose
from ibtrain.kernels.packed import Packed
from ibtrain.kernels.sdpa import padded_attention

# torch prefers cuDNN's attention on Hopper. It builds a plan for every new shape (0.44 s
# forward and 0.55 s backward, modelscope/FunASR#3704), and no two packed batches have one shape;
# its backward with a mask can return NaN (pytorch#196678), and it misreads a mask of another dtype
# (pytorch#191612).
torch.backends.cuda.enable_cudnn_sdp(False)


def varlen_attention(
    query_THK: Tensor,
    key_SGK: Tensor,
    value_SGK: Tensor,
    cu_query: Tensor,
    cu_key: Tensor,
    max_query: int,
    max_key: int,
    *,
    causal: bool = False,
    scale: float | None = None,
    rel_bias: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
) -> Tensor:
    """softmax(q k^T * scale + bias) v within each sequence; returns [T, H, K].

    Args:
        query_THK: queries [T, H, K].
        key_SGK: keys [S, G, K]; H is a multiple of G.
        value_SGK: values [S, G, K].
        cu_query: [B+1] int32 or int64, cumulative query lengths, from 0 to T.
        cu_key: [B+1] int32 or int64, cumulative key lengths, from 0 to S.
        max_query: the longest query sequence.
        max_key: the longest key sequence.
        causal: bottom-right aligned causal mask.
        scale: default K ** -0.5.
        rel_bias: [H, 2R+1], a bias of each head by distance (T5's): key j adds
            rel_bias[h, clamp(j - i, -R, R) + R] to the score of query i, both counted from the
            beginning of their sequence.
        dropout_p: dropout on the attention weights, in [0, 1).
        seed: what the dropout is drawn from, a number or a tensor [1] int64 on the same device;
            left out, it is drawn from torch's generator (so checkpointing, which puts that back,
            drops the same weights again). Only Triton's kernels take one: SDPA and flash-attn draw
            from torch's generator themselves.

    Returns:
        [T, H, K]. A row without keys gives 0.

    Raises:
        ValueError: when shapes, dtypes, devices, lengths and cumulative lengths do not belong
            together, or no backend can compute this. On a GPU the values of the cumulative lengths
            are not looked at: reading them would wait for it.
    """
    _check_rows(query_THK, key_SGK, value_SGK)
    _check_bounds(cu_query, cu_key)
    _check_devices(
        query=query_THK,
        key=key_SGK,
        value=value_SGK,
        cu_query=cu_query,
        cu_key=cu_key,
        rel_bias=rel_bias,
        seed=seed if isinstance(seed, Tensor) else None,
    )
    if rel_bias is not None:
        _check_bias(query_THK, rel_bias)
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p is {dropout_p}; it must be at least 0 and below 1")
    if query_THK.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_lengths("query", cu_query, query_THK.shape[0], max_query)
        _check_lengths("key", cu_key, key_SGK.shape[0], max_key)
    kind = AttentionKind(
        device=query_THK.device,
        dtype=query_THK.dtype,
        head_width=query_THK.shape[-1],
        causal=causal,
        bias=rel_bias is not None,
        dropout=dropout_p > 0,
    )
    scale = query_THK.shape[-1] ** -0.5 if scale is None else scale
    bounds = (cu_query.to(torch.int32), cu_key.to(torch.int32))
    packed = Packed(query_THK, key_SGK, value_SGK, *bounds, max_query, max_key)
    match choose(kind).backend:
        case Backend.TRITON:
            return _triton(packed, causal, scale, rel_bias, dropout_p, seed)
        case Backend.TORCH_VARLEN:
            return libraries.torch_varlen(packed, causal=causal, scale=scale)
        case Backend.FLASH:
            return libraries.flash(packed, causal=causal, scale=scale, dropout_p=dropout_p)
        case Backend.SDPA:
            return padded_attention(
                packed, causal=causal, scale=scale, rel_bias=rel_bias, dropout_p=dropout_p
            )


def _triton(
    packed: Packed,
    causal: bool,
    scale: float,
    rel_bias: Tensor | None,
    dropout_p: float,
    seed: int | Tensor | None,
) -> Tensor:
    from ibtrain.kernels.triton_attention_launch import attention

    if rel_bias is not None:
        rel_bias = rel_bias.float().contiguous()
    if dropout_p == 0.0:
        seed = None
    elif seed is None:
        # On the device: nothing waits, and torch's generator there is the one that is put back.
        seed = torch.randint(2**62, (1,), device=packed.query_THK.device)
    elif not isinstance(seed, Tensor):
        seed = torch.tensor([seed], dtype=torch.int64, device=packed.query_THK.device)
    out: Tensor
    out, _ = attention(*packed, causal, scale, rel_bias, dropout_p, seed)
    return out


def _check_rows(query_THK: Tensor, key_SGK: Tensor, value_SGK: Tensor) -> None:
    rows = {"query": query_THK, "key": key_SGK, "value": value_SGK}
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in rows.items())
    if any(tensor.dim() != 3 for tensor in rows.values()):
        raise ValueError(f"{shapes}: each must be [rows, heads, head width]")
    if key_SGK.shape != value_SGK.shape or query_THK.shape[-1] != key_SGK.shape[-1]:
        raise ValueError(
            f"{shapes} do not fit: key and value must have the same shape, and all three the "
            "same head width"
        )
    if key_SGK.shape[1] == 0 or query_THK.shape[1] % key_SGK.shape[1]:
        raise ValueError(
            f"{query_THK.shape[1]} query heads are not a multiple of {key_SGK.shape[1]} key heads"
        )
    if len({tensor.dtype for tensor in rows.values()}) > 1:
        dtypes = ", ".join(f"{name} {tensor.dtype}" for name, tensor in rows.items())
        raise ValueError(f"the dtypes differ: {dtypes}; attention computes in one")
    if not query_THK.dtype.is_floating_point:
        raise ValueError(f"attention of {query_THK.dtype}: it must be a floating-point type")


def _check_bounds(cu_query: Tensor, cu_key: Tensor) -> None:
    for name, cumulative in (("cu_query", cu_query), ("cu_key", cu_key)):
        whole = cumulative.dtype in (torch.int32, torch.int64)
        if cumulative.dim() != 1 or cumulative.numel() == 0 or not whole:
            raise ValueError(
                f"{name} is {cumulative.dtype} of shape {tuple(cumulative.shape)}; it must be "
                "the cumulative lengths [sequences + 1] in int32 or int64"
            )
    if cu_query.numel() != cu_key.numel():
        raise ValueError(
            f"cu_query names {cu_query.numel() - 1} sequences and cu_key {cu_key.numel() - 1}; "
            "they must name the same ones"
        )


def _check_devices(**tensors: Tensor | None) -> None:
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    if len({tensor.device for tensor in given.values()}) > 1:
        devices = ", ".join(f"{name} on {tensor.device}" for name, tensor in given.items())
        raise ValueError(f"the tensors lie on different devices: {devices}; move them to one")


def _check_bias(query_THK: Tensor, rel_bias: Tensor) -> None:
    heads = query_THK.shape[1]
    if rel_bias.dim() != 2 or rel_bias.shape[0] != heads:
        raise ValueError(f"rel_bias is {tuple(rel_bias.shape)}; it must be [{heads} heads, 2R+1]")
    if rel_bias.shape[1] % 2 == 0:
        raise ValueError(
            f"rel_bias has {rel_bias.shape[1]} distances; from -R to R they are an odd number"
        )


def _check_lengths(name: str, cumulative: Tensor, rows: int, longest: int) -> None:
    values = cumulative.tolist()
    if values[0] != 0 or values[-1] != rows or values != sorted(values):
        raise ValueError(f"cu_{name} must rise from 0 to {rows}, the packed rows; got {values}")
    found = max((after - before for before, after in pairwise(values)), default=0)
    if found > longest:
        raise ValueError(
            f"max_{name} is {longest}, and cu_{name} {values} has a sequence of {found} rows"
        )
