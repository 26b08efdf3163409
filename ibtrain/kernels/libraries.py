"""Attention from libraries that may not be there: the one file that imports them.

Shapes: T packed query rows, H query heads, K head width.
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ibtrain.kernels.packed import Packed

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
    packed: Packed,
    *,
    causal: bool,
    scale: float,
) -> Tensor:
    """torch.nn.attention.varlen, FlashAttention 2: [T, H, K]."""
    attend, _ = _found("torch_varlen")
    assert attend is not None
    accepted = _accepted(attend)
    # torch 2.11 says is_causal, later ones the window that a causal mask is.
    options: dict[str, Any] = (
        {"window_size": (-1, 0) if causal else (-1, -1)}
        if "window_size" in accepted
        else {"is_causal": causal}
    )
    if packed.group > 1 and "enable_gqa" in accepted:
        options["enable_gqa"] = True
    elif packed.group > 1:
        packed = packed._replace(
            key_SGK=packed.key_SGK.repeat_interleave(packed.group, dim=1),
            value_SGK=packed.value_SGK.repeat_interleave(packed.group, dim=1),
        )
    usual = packed.query_THK.shape[-1] ** -0.5
    if "scale" in accepted:
        options["scale"] = scale
    elif scale != usual:
        packed = packed._replace(query_THK=packed.query_THK * (scale / usual))
    out: Tensor = attend(*packed, **options)
    return out


def flash(
    packed: Packed,
    *,
    causal: bool,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """The flash-attn package's packed attention: [T, H, K]."""
    attend, _ = _found("flash")
    assert attend is not None
    out: Tensor = attend(*packed, dropout_p=dropout_p, softmax_scale=scale, causal=causal)
    return out


_WHERE = {
    "torch_varlen": ("torch.nn.attention.varlen", "varlen_attn"),
    "flash": ("flash_attn", "flash_attn_varlen_func"),
}


@functools.cache
def _accepted(attend: Attention) -> frozenset[str]:
    """The names of what it takes; asked once, for it costs the host more than a launch."""
    return frozenset(inspect.signature(attend).parameters)


@functools.cache
def _found(name: str) -> tuple[Attention | None, str]:
    module, function = _WHERE[name]
    try:
        return getattr(importlib.import_module(module), function), ""
    except (ImportError, AttributeError, OSError) as error:
        # OSError: an extension that is built for another torch.
        return None, f"{module} cannot be imported ({error})"
