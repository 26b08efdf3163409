"""Weights into a model: from a directory in transformers' InstructBLIP format, from a checkpoint's
consolidated file, or at random (only where a recipe asks for it).

A source hands out one tensor at a time, so that a caller can place each in its partition before the
next is read. Only safetensors are read: no pickle.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import InstructBlipConfig

from ibtrain.config import LoraSection
from ibtrain.model.instructblip import InstructBlip, part_of
from ibtrain.model.lora import is_adapter

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
# Stored as a parameter by older releases of transformers; computed today.
_COMPUTED = frozenset({"qformer.embeddings.position_ids"})


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
        ValueError: when a file is missing or is not a whole safetensors file.
    """

    def __init__(self, files: Iterable[Path], description: str) -> None:
        self.description = description
        self._file_of: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            if not file.is_file():
                raise ValueError(
                    f"{description}: the shard {file.name} is missing; copy the directory again"
                )
            try:
                with safe_open(file, framework="pt") as opened:
                    for name in opened.keys():  # noqa: SIM118  (not a mapping)
                        self._file_of[name] = file
                        self._shapes[name] = tuple(opened.get_slice(name).get_shape())
            except SafetensorError as error:
                raise ValueError(
                    f"{file} is not a whole safetensors file ({error}); copy it again"
                ) from error

    @classmethod
    def of_directory(cls, directory: Path) -> "SafetensorsSource":
        """The weights of a directory written by `save_pretrained`."""
        description = f"base {directory}"
        index = directory / INDEX_NAME
        if not index.is_file():
            return cls([directory / SINGLE_NAME], description)
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{index} is not an index of safetensors shards ({error!r})"
            ) from error
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise ValueError(
                    f"{index} names the shard {name!r}, which is not a plain file name"
                )
        return cls([directory / name for name in names], description)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape."""
        return self._shapes

    def get(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        with safe_open(self._file_of[name], framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
        return tensor


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


def parameter_shapes(
    config: InstructBlipConfig, instruction_aware: bool = True, lora: LoraSection | None = None
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all parameters, from a model on the meta device."""
    with torch.device("meta"):
        model = InstructBlip(config, instruction_aware, lora)
    return {name: tuple(parameter.shape) for name, parameter in model.weights()}


def choose_sources(
    config: InstructBlipConfig,
    instruction_aware: bool,
    sources: Sequence[TensorSource],
    lora: LoraSection | None = None,
) -> dict[str, TensorSource]:
    """For each parameter the last source that has it, with every shape checked.

    Raises:
        ValueError: when a parameter is in no source (it would silently stay random), a source
            holds a tensor that the model does not know, or a shape differs.
    """
    wanted = parameter_shapes(config, instruction_aware, lora)
    # The ablation takes the same base and leaves the Q-Former's text weights out.
    known = wanted if instruction_aware else parameter_shapes(config, True, lora)
    chosen: dict[str, TensorSource] = {}
    for source in sources:
        unknown = sorted(set(source.shapes()) - set(known) - _COMPUTED)
        if unknown:
            raise ValueError(
                f"{source.description} holds {len(unknown)} tensors that an InstructBLIP of this "
                f"configuration does not have, the first is {unknown[0]!r}; is config.json its own?"
            )
        for name, shape in source.shapes().items():
            if name not in wanted:
                continue
            if tuple(shape) != wanted[name]:
                raise ValueError(
                    f"{source.description}: {name} is {list(shape)}, the configuration wants "
                    f"{list(wanted[name])}; weights and config.json do not belong together"
                )
            chosen[name] = source
    missing = sorted(set(wanted) - set(chosen))
    if missing:
        described = ", ".join(source.description for source in sources)
        raise ValueError(
            f"{len(missing)} parameters are in none of the given weights ({described}) and would "
            f"stay random, the first is {missing[0]!r}"
        )
    return chosen


def read_config(directory: Path) -> InstructBlipConfig:
    """The configuration of a directory in transformers' InstructBLIP format.

    Raises:
        ValueError: when the directory or its config.json is missing, or is of another model.
    """
    file = directory / "config.json"
    if not file.is_file():
        raise ValueError(
            f"{directory} is not a model: it has no config.json. model.base names a directory in "
            "transformers' InstructBLIP format (`ibtrain export RUN --to hf` writes one)"
        )
    try:
        found = json.loads(file.read_text()).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} is not a JSON object ({error})") from error
    if found != "instructblip":
        raise ValueError(f"{file} is of model type {found!r}; an 'instructblip' is wanted")
    return InstructBlipConfig.from_pretrained(directory, local_files_only=True)


def check_vocabularies(
    config: InstructBlipConfig, language_tokens: int, qformer_tokens: int, where: str
) -> None:
    """Refuses tokenizers that can emit ids beyond the embeddings.

    Raises:
        ValueError: naming both sizes.
    """
    for part, tokens, rows in (
        ("language", language_tokens, config.text_config.vocab_size),
        ("Q-Former", qformer_tokens, config.qformer_config.vocab_size),
    ):
        if tokens > rows:
            raise ValueError(
                f"{where}: the {part} tokenizer has {tokens} tokens and the {part} embeddings "
                f"{rows} rows, so some tokens have no embedding; take the tokenizer this base was "
                "saved with, or resize the embeddings and save the base again"
            )


def set_trainable(model: InstructBlip, train_parts: Mapping[str, str]) -> None:
    """Marks the parameters of each part as trained ("full"), frozen ("frozen"), or frozen but for
    its adapters ("lora").
    """
    for name, parameter in model.weights():
        how = train_parts[part_of(name)]
        parameter.requires_grad_(how == "full" or (how == "lora" and is_adapter(name)))
