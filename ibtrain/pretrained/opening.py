"""A model that finding.py found, built and filled: ready to answer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from ibtrain.config import Recipe
from ibtrain.model.instructblip import InstructBlip
from ibtrain.pretrained.finding import find_model
from ibtrain.pretrained.found import FoundModel
from ibtrain.tokenization import InstructionTokenizer


@dataclass(frozen=True)
class OpenedModel:
    """A model ready to answer: weights in place, evaluation mode, nothing trainable."""

    model: InstructBlip
    tokenizer: InstructionTokenizer
    processor_directory: Path
    image_size: int
    description: str
    recipe: Recipe | None
    step: int | None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.query_tokens.device


def open_model(
    path: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> OpenedModel:
    """A model from disk, in evaluation mode.

    Args:
        path: see `find_model`.
        device: where to put it.
        dtype: of its weights.

    Raises:
        ValueError: see `find_model`.
    """
    return build(find_model(path), device, dtype)


def open_to_answer(path: Path) -> OpenedModel:
    """A model from disk where it answers fastest: on the GPU in bf16 where there is one, else on
    the CPU in fp32.

    Raises:
        ValueError: see `find_model`.
    """
    if torch.cuda.is_available():
        return open_model(path, "cuda", torch.bfloat16)
    return open_model(path)


def build(
    found: FoundModel, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> OpenedModel:
    """The model of `found`: laid out without storage, then filled tensor by tensor."""
    model = laid_out(found)
    for name, owners in owners_of(model).items():
        # A copy, so that no tensor stays mapped to a file that a running training may remove.
        value = found.sources[name].get(name).to(device=device, dtype=dtype, copy=True)
        parameter = nn.Parameter(value, requires_grad=False)
        for module, leaf in owners:
            setattr(module, leaf, parameter)
    compute_buffers(model, device)
    left = [name for name, tensor in _tensors(model) if tensor.is_meta]
    assert not left, left
    return opened(found, model)


def opened(found: FoundModel, model: InstructBlip) -> OpenedModel:
    """A model whose weights are in place, with what belongs to it."""
    return OpenedModel(
        model=model.eval(),
        tokenizer=found.tokenizer,
        processor_directory=found.processor_directory,
        image_size=found.config.vision_config.image_size,
        description=found.description,
        recipe=found.recipe,
        step=found.step,
    )


def laid_out(found: FoundModel) -> InstructBlip:
    """The model of `found` without storage."""
    with torch.device("meta"):
        model = InstructBlip(found.config, found.instruction_aware)
    # generate() would fill in what a base's configuration says of beams, penalties and the like.
    language: Any = model.language_model
    language.generation_config = GenerationConfig()
    return model.eval().requires_grad_(False)


def owners_of(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """For each parameter's first name the modules that hold it (several where it is tied)."""
    first: dict[int, str] = {}
    owners: dict[str, list[tuple[nn.Module, str]]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner, _, leaf = name.rpartition(".")
        own = first.setdefault(id(parameter), name)
        owners.setdefault(own, []).append((model.get_submodule(owner), leaf))
    return owners


def compute_buffers(model: nn.Module, device: torch.device | str) -> None:
    """Makes modules whose buffers are not stored (rotary frequencies, fp32) anew, off "meta"."""
    stale = [
        name
        for name, module in model.named_modules()
        if any(buffer.is_meta for buffer in module.buffers(recurse=False))
    ]
    for name in stale:
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(name)
        fresh = type(module)(config=module.config).to(device)
        setattr(model.get_submodule(owner), leaf, fresh)


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]
