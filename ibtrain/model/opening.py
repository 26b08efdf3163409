"""MODEL on the command line, opened: a run directory, one of its steps, an export, or any directory
in transformers' InstructBLIP format (or BLIP-2 format, where the Q-Former reads no instruction).

`find_model` says where everything lies and checks that it fits, without building anything;
`open_model` builds the model from that. An export reads tensor by tensor from the first.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import Blip2Config, GenerationConfig, InstructBlipConfig

from ibtrain.config import Recipe, RecipeError, load_recipe
from ibtrain.data.tokenization import InstructionTokenizer
from ibtrain.model.base import base_config, base_directory, base_sources
from ibtrain.model.instructblip import InstructBlip
from ibtrain.model.weights import (
    SafetensorsSource,
    TensorSource,
    check_vocabularies,
    choose_sources,
    read_config,
)
from ibtrain.run_directory import (
    MANIFEST,
    STATE,
    TRAINABLE,
    RunDirectoryError,
    checkpoints,
    latest_step,
    read_json,
    verify_step,
)

logger = logging.getLogger(__name__)

RECIPE_FILE = "recipe.yaml"
_OURS, _BLIP2S = "qformer.embeddings.layernorm.", "qformer.layernorm."


@dataclass(frozen=True)
class FoundModel:
    """A model on disk, with everything checked that can be checked without reading its weights."""

    config: InstructBlipConfig
    instruction_aware: bool
    sources: Mapping[str, TensorSource]
    """For each parameter where its value is read from."""
    processor_directory: Path
    """Where both tokenizers and the image processor lie."""
    tokenizer: InstructionTokenizer
    description: str
    recipe: Recipe | None = None
    """What it was trained with, where that is known."""
    step: int | None = None


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


@dataclass(frozen=True)
class _Weights:
    """One tensor source per origin, and what goes with them."""

    config: InstructBlipConfig
    instruction_aware: bool
    sources: list[TensorSource]
    processor_directory: Path
    description: str
    recipe: Recipe | None = None
    step: int | None = None
    limits: dict[str, int] = field(default_factory=dict)


class _Renamed:
    """A source of a BLIP-2 directory, under our names."""

    def __init__(self, source: TensorSource) -> None:
        self.description = source.description
        self._source = source
        self._theirs = {from_blip2_name(name): name for name in source.shapes()}

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape."""
        theirs = self._source.shapes()
        return {name: theirs[original] for name, original in self._theirs.items()}

    def get(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        return self._source.get(self._theirs[name])


def to_blip2_name(name: str) -> str:
    """The name of a parameter in transformers' `Blip2ForConditionalGeneration`.

    The two formats differ in one module: BLIP-2's Q-Former has no text embeddings, so the
    LayerNorm that InstructBLIP keeps among them is the Q-Former's own.
    """
    return _BLIP2S + name.removeprefix(_OURS) if name.startswith(_OURS) else name


def from_blip2_name(name: str) -> str:
    """The inverse of `to_blip2_name`."""
    return _OURS + name.removeprefix(_BLIP2S) if name.startswith(_BLIP2S) else name


def find_model(path: Path) -> FoundModel:
    """What `path` holds: configuration, tokenizers, and for each parameter where its value lies.

    Args:
        path: a run directory (its latest step is meant), a step directory, or a directory in
            transformers' InstructBLIP or BLIP-2 format, such as an export.

    Raises:
        ValueError: when it is none of these, a file is missing or damaged, the base that the
            recipe names is not there, or tokenizers, configuration and weights do not fit.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is not a model: there is no such directory")
    if (path / "config.json").is_file():
        weights = _of_transformers(path)
    elif (path / MANIFEST).is_file() or (path / STATE).is_file():
        weights = _of_step(path)
    elif checkpoints(path).is_dir() or (path / RECIPE_FILE).is_file():
        latest = latest_step(path)
        if latest is None:
            raise RunDirectoryError(
                f"the run {path} has no checkpoint yet; wait for its first one "
                "(checkpoint.every in its recipe) or name another model"
            )
        weights = _of_step(latest)
    else:
        raise ValueError(
            f"{path} is not a model: it is neither a run directory, nor a step of one, nor a "
            "directory in transformers' InstructBLIP format (config.json and safetensors)"
        )
    return _fitted(weights)


def _fitted(weights: _Weights) -> FoundModel:
    tokenizer = InstructionTokenizer.from_directory(weights.processor_directory, **weights.limits)
    check_vocabularies(
        weights.config,
        len(tokenizer.language),
        len(tokenizer.qformer),
        str(weights.processor_directory),
    )
    return FoundModel(
        config=weights.config,
        instruction_aware=weights.instruction_aware,
        sources=choose_sources(weights.config, weights.instruction_aware, weights.sources),
        processor_directory=weights.processor_directory,
        tokenizer=tokenizer,
        description=weights.description,
        recipe=weights.recipe,
        step=weights.step,
    )


def _of_transformers(directory: Path) -> _Weights:
    source: TensorSource = SafetensorsSource.of_directory(directory)
    found = read_json(directory / "config.json", "copy the directory again")
    if found.get("model_type") == Blip2Config.model_type:
        config, aware, source = _instructblip_config(directory), False, _Renamed(source)
    else:
        config, aware = read_config(directory), found.get("instruction_aware", True)
    if not isinstance(aware, bool):
        raise ValueError(
            f"{directory / 'config.json'}: instruction_aware is {aware!r}; write true or false"
        )
    recipe = _recipe_beside(directory)
    return _Weights(
        config=config,
        instruction_aware=aware,
        sources=[source],
        processor_directory=directory,
        description=str(directory),
        recipe=recipe,
        limits=_limits(recipe),
    )


def _instructblip_config(directory: Path) -> InstructBlipConfig:
    """The configuration of a BLIP-2 directory as an InstructBLIP one."""
    blip2 = Blip2Config.from_pretrained(directory, local_files_only=True)
    sections = {
        name: {
            key: value
            for key, value in getattr(blip2, name).to_dict().items()
            if key not in ("model_type", "use_qformer_text_input")
        }
        for name in ("vision_config", "qformer_config")
    }
    return InstructBlipConfig(
        **sections,
        text_config=blip2.text_config.to_dict(),
        num_query_tokens=blip2.num_query_tokens,
        image_token_index=blip2.image_token_index,
    )


def _recipe_beside(directory: Path) -> Recipe | None:
    """The recipe in an export; one that this version cannot read is no reason not to open it."""
    file = directory / RECIPE_FILE
    if not file.is_file():
        return None
    try:
        return load_recipe(str(file))
    except RecipeError as error:
        logger.warning("the recipe of %s is left aside: %s", directory, error)
        return None


def _of_step(directory: Path) -> _Weights:
    step = verify_step(directory)
    recipe = _recipe_of_step(directory)
    base = base_directory(recipe.model)
    if not base.is_dir():
        key = "model.base" if recipe.model.base is not None else "model.random_base.processor"
        raise ValueError(
            f"{directory} holds only what was trained; the rest is in {base}, which its recipe "
            f"names ({key}) and which is not there. Relative paths begin at the working directory: "
            "call from where it was trained, or put the directory back"
        )
    config = base_config(recipe.model)
    trained = SafetensorsSource([directory / TRAINABLE], f"checkpoint {directory}")
    return _Weights(
        config=config,
        instruction_aware=recipe.model.instruction_aware,
        sources=[*base_sources(recipe.model, config, recipe.seed), trained],
        processor_directory=base,
        description=f"step {step} of {recipe.name} ({directory})",
        recipe=recipe,
        step=step,
        limits=_limits(recipe),
    )


def _recipe_of_step(directory: Path) -> Recipe:
    state: dict[str, Any] = read_json(directory / STATE, "choose another step")
    try:
        return Recipe.model_validate(state["recipe"])
    except KeyError as error:
        raise RunDirectoryError(f"{directory / STATE} holds no recipe; choose another step") from (
            error
        )
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"])
        raise RunDirectoryError(
            f"{directory / STATE}: its recipe cannot be used by this version of ibtrain "
            f"({key}: {fault['msg']}); use the version it was trained with"
        ) from error


def _limits(recipe: Recipe | None) -> dict[str, int]:
    """The tokenizer's limits that it was trained with; none known, none given."""
    if recipe is None:
        return {}
    return {
        "max_instruction_tokens": recipe.data.max_instruction_tokens,
        "max_answer_tokens": recipe.data.max_answer_tokens,
    }


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


def build(
    found: FoundModel, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> OpenedModel:
    """The model of `found`: laid out without storage, then filled tensor by tensor."""
    with torch.device("meta"):
        model = InstructBlip(found.config, found.instruction_aware)
    for name, source in found.sources.items():
        owner, _, leaf = name.rpartition(".")
        # A copy, so that no tensor stays mapped to a file that a running training may remove.
        value = source.get(name).to(device=device, dtype=dtype, copy=True)
        setattr(model.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
    language: Any = model.language_model
    # generate() would fill in what a base's configuration says of beams, penalties and the like.
    language.generation_config = GenerationConfig()
    if getattr(found.config.text_config, "tie_word_embeddings", False):
        language.lm_head.weight = language.model.embed_tokens.weight
    _compute_buffers(model, device)
    return OpenedModel(
        model=model.eval(),
        tokenizer=found.tokenizer,
        processor_directory=found.processor_directory,
        image_size=found.config.vision_config.image_size,
        description=found.description,
        recipe=found.recipe,
        step=found.step,
    )


def _compute_buffers(model: nn.Module, device: torch.device | str) -> None:
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
    left = [name for name, tensor in _tensors(model) if tensor.is_meta]
    assert not left, left


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]
