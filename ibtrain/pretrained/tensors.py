"""Where tensors come from: safetensors files, random ones where a recipe asks for them, adapters
before training.

A source hands out one tensor at a time, so that a caller can place each in its partition before the
next is read. Only safetensors are read: no pickle.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ibtrain.files import check_not_pointer
from ibtrain.model.lora import B_ENDING, is_adapter

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
# Stored by some releases of transformers, and the same as another tensor or computed today.
SURPLUS = re.compile(
    r"qformer\.embeddings\.position_ids$|language_model\..*rotary_emb\.inv_freq$|"
    r"language_model\.(?:encoder|decoder)\.embed_tokens\.weight$|language_model\.lm_head\.weight$"
)
_FLOATS = {"F64", "F32", "F16", "BF16"}
_NUMBER = re.compile(r"\d+")


class TensorSource(Protocol):
    """Named tensors, read one at a time."""

    description: str

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape, without reading its values."""
        ...

    def get(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        ...


class SafetensorsSource:
    """Tensors of one or more safetensors files.

    Raises:
        ValueError: when a file is missing or is not a whole safetensors file, holds tensors of a
            dtype that weights do not have, or one that differs from its like in other files, or one
            that another file holds as well.
        OSError: when a file may not be read.
    """

    def __init__(self, files: Iterable[Path], description: str) -> None:
        self.description = description
        self._file_of: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        dtypes: dict[str, str] = {}
        for file in files:
            if not file.is_file():
                raise ValueError(
                    f"{description}: the shard {file.name} is missing; copy the directory again"
                )
            check_not_pointer(file)  # safetensors calls one that may not be read missing
            try:
                with safe_open(file, framework="pt") as opened:
                    for name in opened.keys():  # noqa: SIM118  (not a mapping)
                        check_single(name, self._file_of.setdefault(name, file), file)
                        view = opened.get_slice(name)
                        self._shapes[name] = tuple(view.get_shape())
                        dtypes[name] = view.get_dtype()
            except SafetensorError as error:
                raise ValueError(
                    f"{file} is not a whole safetensors file ({error}); copy it again"
                ) from error

        check_dtypes(dtypes, self._file_of)

    @classmethod
    def of_directory(cls, directory: Path) -> "SafetensorsSource":
        """The weights of a directory written by `save_pretrained`."""
        description = f"base {directory}"
        index = directory / INDEX_NAME
        # An index beside one whole file is a remnant, to transformers as well.
        if (directory / SINGLE_NAME).is_file() or not index.is_file():
            return cls([directory / SINGLE_NAME], description)
        return cls([directory / name for name in shard_names(index)], description)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape."""
        return self._shapes

    def get(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        with safe_open(self._file_of[name], framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
        return tensor


def check_single(name: str, first: Path, file: Path) -> None:
    """Refuses a tensor that a second file holds as well.

    Raises:
        ValueError: naming both files.
    """
    if first != file:
        raise ValueError(
            f"{first} and {file} both hold {name}; the shards are not of one model, copy the "
            "directory again"
        )


def check_dtypes(dtypes: Mapping[str, str], file_of: Mapping[str, Path]) -> None:
    """Weights are floating-point, and the same weight of every layer has one dtype.

    Args:
        dtypes: of each tensor, in the words of safetensors (F32, BF16).
        file_of: the file that each lies in.

    Raises:
        ValueError: naming the first that differs.
    """
    like: dict[str, Counter[str]] = {}
    for name, dtype in dtypes.items():
        if dtype not in _FLOATS and not SURPLUS.match(name):
            raise ValueError(
                f"{file_of[name]}: {name} is {dtype}, and weights are F32, F16 or BF16; "
                "take the model as it was released, not quantised"
            )
        like.setdefault(_NUMBER.sub("N", name), Counter())[dtype] += 1
    for name, dtype in dtypes.items():
        usual = like[_NUMBER.sub("N", name)].most_common(1)[0][0]
        if dtype != usual:
            raise ValueError(
                f"{file_of[name]}: {name} is {dtype}, and the same weight of other "
                f"layers is {usual}; the shards are not of one model, copy the directory again"
            )


def shard_names(index: Path) -> list[str]:
    """The files that an index of shards names.

    Raises:
        ValueError: when it is not an index, or names anything but plain file names.
    """
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is not an index of safetensors shards ({error!r})") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{index} names the shard {name!r}, which is not a plain file name")
    return names


class RandomSource:
    """Initial weights as a function of (seed, name): LayerNorm at one, biases at zero, the rest
    normal(0, `deviation`). Independent of the order in which tensors are asked for.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], seed: int, deviation: float) -> None:
        self.description = f"random weights of seed {seed}"
        self._shapes = shapes
        self._seed = seed
        self._deviation = deviation

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape."""
        return self._shapes

    def get(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        shape = self._shapes[name]
        if name.endswith(".bias"):
            return torch.zeros(shape)
        if len(shape) == 1:
            return torch.ones(shape)
        digest = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return torch.randn(shape, generator=generator) * self._deviation


class AdapterSource:
    """Adapters before training, as peft begins: A uniform in ±1/sqrt(D), B zero, so that the model
    does what it did without them. A function of (seed, name).
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], seed: int) -> None:
        self.description = f"new adapters of seed {seed}"
        self._shapes = {name: shape for name, shape in shapes.items() if is_adapter(name)}
        self._seed = seed

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape."""
        return self._shapes

    def get(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        shape = self._shapes[name]
        if name.endswith(B_ENDING):
            return torch.zeros(shape)
        digest = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        bound = 1 / math.sqrt(shape[1])
        return (torch.rand(shape, generator=generator) * 2 - 1) * bound
