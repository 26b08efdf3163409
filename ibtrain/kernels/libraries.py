"""Attention from libraries that may not be there: the one file that imports them.

Shapes: T packed query rows, S packed key rows, B sequences, H query heads, G key heads,
K head width.
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

OLDEST_CARD = (8, 0)
Attention = Callable[..., Any]


def why_not(name: str, device: torch.device) -> str:
    """What keeps the library `name` (torch_varlen, flash) from running on `device`, or nothing."""
    missing = _found(name)[1]
    if missing:
        return missing
    if device.type != "cuda":
        return f"it does not run on {device.type}"
    card = torch.cuda.get_device_capability(device)
    if card < OLDEST_CARD:
        return f"the card is of compute capability {card[0]}.{card[1]}, and 8.0 is the oldest"
    return ""


def torch_varlen(
    query_THK: Tensor,
    key_SGK: Tensor,
    value_SGK: Tensor,
    cu_query: Tensor,
    cu_key: Tensor,
    max_query: int,
    max_key: int,
    *,
    causal: bool,
    scale: float,
) -> Tensor:
    """torch.nn.attention.varlen, FlashAttention 2: [T, H, K]."""
    attend, _ = _found("torch_varlen")
    assert attend is not None
    accepted = inspect.signature(attend).parameters
    # torch 2.11 says is_causal, later ones the window that a causal mask is.
    options: dict[str, Any] = (
        {"window_size": (-1, 0) if causal else (-1, -1)}
        if "window_size" in accepted
        else {"is_causal": causal}
    )
    heads, key_heads = query_THK.shape[1], key_SGK.shape[1]
    if heads != key_heads and "enable_gqa" in accepted:
        options["enable_gqa"] = True
    elif heads != key_heads:
        key_SGK, value_SGK = (
            rows.repeat_interleave(heads // key_heads, dim=1) for rows in (key_SGK, value_SGK)
        )
    if "scale" in accepted:
        options["scale"] = scale
    elif scale != query_THK.shape[-1] ** -0.5:
        query_THK = query_THK * (scale * query_THK.shape[-1] ** 0.5)
    out: Tensor = attend(
        query_THK, key_SGK, value_SGK, cu_query, cu_key, max_query, max_key, **options
    )
    return out


def flash(
    query_THK: Tensor,
    key_SGK: Tensor,
    value_SGK: Tensor,
    cu_query: Tensor,
    cu_key: Tensor,
    max_query: int,
    max_key: int,
    *,
    causal: bool,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """The flash-attn package's packed attention: [T, H, K]."""
    attend, _ = _found("flash")
    assert attend is not None
    out: Tensor = attend(
        *(query_THK, key_SGK, value_SGK, cu_query, cu_key, max_query, max_key),
        dropout_p=dropout_p,
        softmax_scale=scale,
        causal=causal,
    )
    return out


_WHERE = {
    "torch_varlen": ("torch.nn.attention.varlen", "varlen_attn"),
    "flash": ("flash_attn", "flash_attn_varlen_func"),
}


@functools.cache
def _found(name: str) -> tuple[Attention | None, str]:
    module, function = _WHERE[name]
    try:
        return getattr(importlib.import_module(module), function), ""
    except (ImportError, AttributeError, OSError) as error:
        # OSError: an extension that is built for another torch.
        return None, f"{module} cannot be imported ({error})"
