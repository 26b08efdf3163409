"""A model whose weights are read when a module runs and dropped when it has run.

It takes as much memory as its largest module, and reads its weights anew in every pass: for one
batch through a model that does not fit otherwise.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ibtrain.pretrained.found import FoundModel
from ibtrain.pretrained.opening import OpenedModel, compute_buffers, laid_out, opened
from ibtrain.pretrained.tensors import TensorSource


def open_on_demand(found: FoundModel) -> OpenedModel:
    """The model of `found` in fp32 on the CPU, its weights read while it runs."""
    model = laid_out(found)
    compute_buffers(model, "cpu")
    read_on_demand(model, found.sources)
    return opened(found, model)


def read_on_demand(model: nn.Module, sources: Mapping[str, TensorSource]) -> None:
    """Hooks every module of a model without storage to its weights, in fp32.

    A module's own weights are there while its `forward` runs; the model's own stay from now on,
    since not all of its methods are its forward.

    Args:
        model: its parameters are on the meta device, or have values (which stay).
        sources: for each parameter where its value is read from; of tied ones the first will do.

    Raises:
        ValueError: when a parameter is in none of the sources.
    """
    first: dict[int, str] = {}
    stored: dict[nn.Module, dict[str, str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        own = name if name in sources else first.get(id(parameter))
        if not parameter.is_meta:
            continue
        if own is None:
            raise ValueError(f"the weight {name} is not among those that were written")
        first.setdefault(id(parameter), own)
        owner, _, leaf = name.rpartition(".")
        stored.setdefault(model.get_submodule(owner), {})[leaf] = own
    for module, leaves in stored.items():
        weights = _Weights(sources, leaves)
        weights.drop(module)
        if module is model:
            weights.put(module)
        else:
            module.register_forward_pre_hook(weights.put)
            module.register_forward_hook(weights.drop)


class _Weights:
    """The weights of one module."""

    def __init__(self, sources: Mapping[str, TensorSource], leaves: Mapping[str, str]) -> None:
        self._sources, self._leaves = sources, leaves

    def put(self, module: nn.Module, *_: Any) -> None:
        for leaf, name in self._leaves.items():
            value = self._sources[name].get(name).to(torch.float32)
            setattr(module, leaf, nn.Parameter(value, requires_grad=False))

    def drop(self, module: nn.Module, *_: Any) -> None:
        for leaf in self._leaves:
            # One value instead of all: without storage, and yet on the CPU for those who ask
            # (peft puts adapters where the weights are). Used by mistake, it shows in the result.
            empty = torch.full((), torch.nan).expand(getattr(module, leaf).shape)
            setattr(module, leaf, nn.Parameter(empty, requires_grad=False))
