"""Gradient checkpointing: a layer's inside is not kept for the backward but computed again."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def run_layer(layer: Callable[..., Any], *arguments: Any, recompute: bool) -> Any:
    """`layer(*arguments)`; with `recompute` only its arguments are kept for the backward.

    Dropout is drawn again as it was: torch's generator is put back for the second run.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(layer, *arguments, use_reentrant=False)
    return layer(*arguments)
