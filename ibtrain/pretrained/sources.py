"""Sources made of others: renamed, a part of one, or with rows added to an embedding."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ibtrain.pretrained.tensors import (
    INDEX_NAME,
    SINGLE_NAME,
    SafetensorsSource,
    TensorSource,
    shard_names,
)
from ibtrain.pretrained.torch_files import TorchSource

_SAFE = (INDEX_NAME, SINGLE_NAME)
_PICKLED = ("pytorch_model.bin.index.json", "pytorch_model.bin")
_OURS, _BLIP2S = "qformer.embeddings.layernorm.", "qformer.layernorm."


class RenamedSource:
    """Tensors of another source under our names.

    Args:
        source: the other.
        rename: gives our name of each of its tensors, None for one that is passed over, several
            for one that stands in more than one file.
    """

    def __init__(
        self, source: TensorSource, rename: Callable[[str], str | tuple[str, ...] | None]
    ) -> None:
        self.description = source.description
        self._source = source
        self._stored: dict[str, str] = {}
        for stored in source.shapes():
            names = rename(stored)
            for name in (names,) if isinstance(names, str) else names or ():
                self._stored[name] = stored

    def stored_name(self, name: str) -> str:
        """The other source's name of one of ours."""
        return self._stored[name]

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape."""
        shapes = self._source.shapes()
        return {name: shapes[stored] for name, stored in self._stored.items()}

    def get(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        return self._source.get(self._stored[name])


class GrownSource:
    """Another source, with rows added to some of its embeddings: each the mean of those there are.

    Such a row belongs to a token that training never shows (padding, an image's place-holder); the
    mean keeps its logit away from the largest.

    Args:
        source: the other.
        rows: how many rows each of the named tensors gets to have; one that is not in the source,
            or has as many, stays as it is.
    """

    def __init__(self, source: TensorSource, rows: Mapping[str, int]) -> None:
        self.description = source.description
        self._source = source
        self._rows = rows

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape."""
        return {
            name: (max(shape[0], self._rows[name]), *shape[1:]) if name in self._rows else shape
            for name, shape in self._source.shapes().items()
        }

    def get(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        tensor_VD = self._source.get(name)
        missing = self._rows.get(name, 0) - tensor_VD.shape[0] if name in self._rows else 0
        if missing <= 0:
            return tensor_VD
        mean_1D = tensor_VD.mean(0, keepdim=True, dtype=torch.float32).to(tensor_VD.dtype)
        return torch.cat([tensor_VD, mean_1D.expand(missing, -1)])


def has_weights(directory: Path) -> bool:
    """Whether a directory holds weights at all, rather than a tokenizer alone."""
    return any((directory / name).is_file() for name in (*_SAFE, *_PICKLED))


def source_of_directory(directory: Path) -> TensorSource:
    """The weights of a directory that transformers wrote: safetensors, or else torch files.

    Raises:
        ValueError: when there are none, a shard is missing, or a file cannot be read.
    """
    if any((directory / name).is_file() for name in _SAFE) or not has_weights(directory):
        return SafetensorsSource.of_directory(directory)
    index, single = (directory / name for name in _PICKLED)
    files = [single] if single.is_file() else [directory / name for name in shard_names(index)]
    for file in files:
        if not file.is_file():
            raise ValueError(f"base {directory}: the shard {file.name} is missing; copy it again")
    return TorchSource(files, f"base {directory}")


def to_blip2_name(name: str) -> str:
    """The name of a parameter in transformers' `Blip2ForConditionalGeneration`.

    The two formats differ in one module: BLIP-2's Q-Former has no text embeddings, so the
    LayerNorm that InstructBLIP keeps among them is the Q-Former's own.
    """
    return _BLIP2S + name.removeprefix(_OURS) if name.startswith(_OURS) else name


def from_blip2_name(name: str) -> str:
    """The inverse of `to_blip2_name`."""
    return _OURS + name.removeprefix(_BLIP2S) if name.startswith(_BLIP2S) else name
