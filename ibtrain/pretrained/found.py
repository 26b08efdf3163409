"""What a model found on disk is: its weights, its adapters, and what must be known to open it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import InstructBlipConfig

from ibtrain.config import LoraSection, Recipe
from ibtrain.model.lora import adapter_names, merged_weight
from ibtrain.pretrained.tensors import TensorSource
from ibtrain.tokenization import InstructionTokenizer


@dataclass(frozen=True)
class Adapters:
    """Adapters that were trained apart, and the weights as they are without them."""

    lora: LoraSection
    sources: Mapping[str, TensorSource]
    """For each adapter's weight where its value is read from."""
    without: Mapping[str, TensorSource]
    """For each parameter where its value without adapters is read from."""


@dataclass(frozen=True)
class FoundModel:
    """A model on disk, with everything checked that can be checked without building it."""

    config: InstructBlipConfig
    instruction_aware: bool
    sources: Mapping[str, TensorSource]
    """For each parameter where its value is read from; adapters are merged into them."""
    processor_directory: Path
    """Where both tokenizers and the image processor lie."""
    tokenizer: InstructionTokenizer
    description: str
    recipe: Recipe | None = None
    """What it was trained with, where that is known."""
    step: int | None = None
    adapters: Adapters | None = None
    base: Mapping[str, str] | None = None
    """The fingerprint of the base that it was trained on, where that is known."""
    trained: frozenset[str] = frozenset()
    """Names of the parameters that a checkpoint or an export of it holds, adapters included."""


def merged_sources(adapters: Adapters) -> dict[str, TensorSource]:
    """Every parameter's source, those of adapted layers with their adapters merged in."""
    merged: dict[str, TensorSource] = {}
    for name, source in adapters.without.items():
        down, up = adapter_names(name)
        if down in adapters.sources:
            pair = adapters.sources[down], adapters.sources[up]
            merged[name] = _MergedSource(source, *pair, adapters.lora)
        else:
            merged[name] = source
    return merged


class _MergedSource:
    """Weights with their adapters merged in."""

    def __init__(
        self, weights: TensorSource, down: TensorSource, up: TensorSource, lora: LoraSection
    ) -> None:
        self.description = f"{weights.description} with adapters of {down.description}"
        self._weights, self._down, self._up, self._lora = weights, down, up, lora

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape."""
        return self._weights.shapes()

    def get(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        down, up = adapter_names(name)
        return merged_weight(
            self._weights.get(name), self._down.get(down), self._up.get(up), self._lora
        )
