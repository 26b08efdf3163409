"""Weights into a model: from a directory in transformers' InstructBLIP format, from a checkpoint's
consolidated file, or at random (only where a recipe asks for it).

A source hands out one tensor at a time, so that a caller can place each in its partition before the
next is read. Only safetensors are read: no pickle.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, InstructBlipConfig

from ibtrain.config import LoraSection
from ibtrain.model.instructblip import InstructBlip, part_of
from ibtrain.model.lora import is_adapter
from ibtrain.pretrained.census import describe_missing

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
# Stored by some releases of transformers, and the same as another tensor or computed today.
_SURPLUS = re.compile(
    r"qformer\.embeddings\.position_ids$|language_model\..*rotary_emb\.inv_freq$|"
    r"language_model\.(?:encoder|decoder)\.embed_tokens\.weight$|language_model\.lm_head\.weight$"
)
_FLOATS = {"F64", "F32", "F16", "BF16"}
_NUMBER = re.compile(r"\d+")
# What transformers and torch raise at a configuration with values that no model can have.
UNUSABLE = (
    *(ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError),
    StrictDataclassError,  # transformers 5 checks types, and this is none of the above
)


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
            file.open("rb").close()  # safetensors calls one that may not be read missing
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
        if dtype not in _FLOATS and not _SURPLUS.match(name):
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


def parameter_shapes(
    config: InstructBlipConfig, instruction_aware: bool = True, lora: LoraSection | None = None
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all parameters, from a model on the meta device.

    Raises:
        ValueError: when no model can be built of the configuration, or adapters do not fit it.
    """
    try:
        _check_heads(config)
        with torch.device("meta"):
            model = InstructBlip(config, instruction_aware, lora)
    except ValueError:
        raise
    except UNUSABLE as error:
        where = f"{config.name_or_path}/config.json" if config.name_or_path else "the given sizes"
        raise ValueError(
            f"no model can be built of {where}: {type(error).__name__}, {error}; correct the "
            "value, or take the configuration that belongs to the weights"
        ) from error
    return {name: tuple(parameter.shape) for name, parameter in model.weights()}


def _check_heads(config: InstructBlipConfig) -> None:
    for key in ("vision_config", "qformer_config"):
        heads, width = getattr(config, key).num_attention_heads, getattr(config, key).hidden_size
        if heads < 1 or width % heads:
            raise ValueError(
                f"{key}.num_attention_heads is {heads}, which does not divide {key}.hidden_size "
                f"({width}); take the configuration that belongs to the weights"
            )


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
        unknown = sorted(n for n in set(source.shapes()) - set(known) if not _SURPLUS.match(n))
        if unknown:
            raise ValueError(
                f"{source.description} holds {len(unknown)} tensors that an InstructBLIP of this "
                f"configuration does not have, the first is {_as_stored(source, unknown[0])!r}; "
                f"{_why_unknown(unknown[0])}"
            )
        for name, shape in source.shapes().items():
            if name not in wanted:
                continue
            if tuple(shape) != wanted[name]:
                raise ValueError(
                    f"{source.description}: {name} is {list(shape)}, the configuration wants "
                    f"{list(wanted[name])}; {_why_shapes_differ(name, shape, wanted[name])}"
                )
            chosen[name] = source
    missing = sorted(set(wanted) - set(chosen))
    if missing:
        described = ", ".join(source.description for source in sources)
        raise ValueError(
            f"{len(missing)} parameters are in none of the given weights ({described}) and would "
            f"stay random, the first is {missing[0]!r}: {describe_missing(missing, chosen)}"
        )
    return chosen


def _as_stored(source: TensorSource, name: str) -> str:
    """A tensor's name in its file, where the source gives it another."""
    stored: str = getattr(source, "stored_name", str)(name)
    return stored


def _why_unknown(name: str) -> str:
    if is_adapter(name):
        return "are lora.targets those that it was trained with?"
    return "is config.json its own?"


def _why_shapes_differ(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    if is_adapter(name):
        return "adapters and their settings (rank, targets) do not belong together"
    if name.startswith("language_projection.") and found[0] != wanted[0]:
        return (
            f"they were trained with a language model of width {found[0]}, and this one's is "
            f"{wanted[0]}"
        )
    return "weights and config.json do not belong together"


def read_model_type(directory: Path) -> str | None:
    """The type of model that a directory's config.json names.

    Raises:
        ValueError: when the directory or its config.json is missing, or is not a JSON object.
    """
    file = directory / "config.json"
    if not file.is_file():
        found = "it has no config.json" if directory.is_dir() else "there is no such directory"
        raise ValueError(
            f"{directory} is not a model: {found}; give the directory of a downloaded model, or of "
            "an export (`ibtrain export RUN --to hf` writes one)"
        )
    try:
        model_type: str | None = json.loads(file.read_text()).get("model_type")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is not a JSON object ({error})") from error
    return model_type


def open_config(kind: Any, directory: Path) -> Any:
    """transformers' configuration of a directory, without ever running code that it holds.

    Args:
        kind: a configuration class of transformers, or `AutoConfig`.
        directory: has a config.json.

    Raises:
        ValueError: when transformers cannot make a configuration of config.json.
    """
    # AutoConfig alone takes the switch; others would keep it as a value.
    switch = {"trust_remote_code": False} if kind is AutoConfig else {}
    try:
        config = kind.from_pretrained(directory, local_files_only=True, **switch)
    except (*UNUSABLE, OSError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{directory / 'config.json'} is no configuration that transformers can open "
            f"({type(error).__name__}, {first}); copy it again, or name a supported model"
        ) from error
    config.name_or_path = directory
    return config


def read_config(directory: Path) -> InstructBlipConfig:
    """The configuration of a directory in transformers' InstructBLIP format.

    Raises:
        ValueError: when the directory or its config.json is missing, or is of another model.
    """
    found = read_model_type(directory)
    if found != "instructblip":
        raise ValueError(
            f"{directory / 'config.json'} is of model type {found!r}; an 'instructblip' is wanted"
        )
    config: InstructBlipConfig = open_config(InstructBlipConfig, directory)
    return config


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
