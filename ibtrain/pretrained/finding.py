"""MODEL on the command line, found: a run directory, one of its steps, an export, any directory in
transformers' InstructBLIP format (or BLIP-2 format, where the Q-Former reads no instruction), or a
recipe, whose base is meant.

`find_model` says where everything lies and checks that it fits, without building anything:
opening.py builds the model from that, and an export reads tensor by tensor from it.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from transformers import InstructBlipConfig

from ibtrain.config import LoraSection, ModelSection, Recipe, RecipeError, load_recipe
from ibtrain.files import read_json
from ibtrain.model.instructblip import part_of
from ibtrain.model.lora import adapter_targets, is_adapter
from ibtrain.pretrained.base import (
    base_config,
    base_directory,
    base_sources,
    directory_config,
    directory_source,
    is_blip2,
    processor_directory,
)
from ibtrain.pretrained.configuration import check_vocabularies
from ibtrain.pretrained.fingerprint import differences, fingerprint
from ibtrain.pretrained.fit import choose_sources, parameter_shapes
from ibtrain.pretrained.found import Adapters, FoundModel, merged_sources
from ibtrain.pretrained.lavis import LavisSource
from ibtrain.pretrained.peft import (
    ADAPTER_CONFIG,
    ADAPTER_DIRECTORY,
    adapter_source,
    check_adapter_settings,
    read_adapter_settings,
)
from ibtrain.pretrained.tensors import SafetensorsSource, TensorSource
from ibtrain.run_directory import (
    MANIFEST,
    STATE,
    TRAINABLE,
    RunDirectoryError,
    checkpoints,
    latest_step,
    verify_step,
)
from ibtrain.tokenization import InstructionTokenizer

logger = logging.getLogger(__name__)

RECIPE_FILE = "recipe.yaml"
EXPORT_REPORT = "export_report.json"
TRIMMED = "trimmed.pth"
"""The file of an export in LAVIS's format."""
TRAINED_BESIDE = "trained.safetensors"
"""In an export in peft's format: what was trained besides the adapters."""


@dataclass(frozen=True)
class _Weights:
    """One tensor source per origin, and what goes with them."""

    config: InstructBlipConfig
    instruction_aware: bool
    base_sources: list[TensorSource]
    trained_sources: list[TensorSource]
    processor_directory: Path
    description: str
    recipe: Recipe | None = None
    step: int | None = None
    limits: dict[str, int] = field(default_factory=dict)
    lora: LoraSection | None = None
    on_recipe: bool = False
    """Whether the base is the one that the recipe names."""
    base: Mapping[str, str] | None = None
    """The fingerprint of the base that it was trained on, where it was written down."""


def find_model(path: Path) -> FoundModel:
    """What `path` holds: configuration, tokenizers, and for each parameter where its value lies.

    Args:
        path: a run directory (its latest step is meant), a step directory, or a directory in
            transformers' InstructBLIP or BLIP-2 format, such as an export.

    Raises:
        ValueError: when it is none of these, a file is missing or damaged, the base that the
            recipe names is not there, or tokenizers, configuration and weights do not fit.
    """
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return _fitted(_of_recipe(load_recipe(str(path)), [], f"the base of {path}"))
    if not path.is_dir():
        found = "it is a file" if path.is_file() else "there is no such directory"
        raise ValueError(f"{path} is not a model: {found}")
    if (path / "config.json").is_file():
        weights = _of_transformers(path)
    elif (path / MANIFEST).is_file() or (path / STATE).is_file():
        weights = _of_step(path)
    elif any((path / name).is_file() for name in (EXPORT_REPORT, TRIMMED, TRAINED_BESIDE)):
        weights = _of_trained_part(path)
    elif checkpoints(path).is_dir() or (path / RECIPE_FILE).is_file():
        latest = latest_step(path)
        if latest is None:
            raise RunDirectoryError(
                f"the run {path} has no checkpoint yet; wait for its first one "
                "(checkpoint.every in its recipe) or name another model"
            )
        weights = _of_step(latest)
    elif (path / ADAPTER_CONFIG).is_file():
        raise ValueError(
            f"{path} is an adapter that ibtrain did not export: it does not say what base and what "
            "Q-Former it belongs to; open it with peft on its own base"
        )
    else:
        raise ValueError(
            f"{path} is not a model: it is neither a run directory, nor a step of one, nor a "
            "directory in transformers' InstructBLIP format (config.json and safetensors)"
        )
    return _fitted(weights)


def _fitted(weights: _Weights) -> FoundModel:
    tokenizer = InstructionTokenizer.from_directory(weights.processor_directory, **weights.limits)
    if weights.instruction_aware:  # a base of few positions, and no recipe that says so
        positions = weights.config.qformer_config.max_position_embeddings
        tokenizer.max_instruction_tokens = min(tokenizer.max_instruction_tokens, positions)
    check_vocabularies(
        weights.config,
        len(tokenizer.language),
        len(tokenizer.qformer),
        str(weights.processor_directory),
    )
    base = _checked_base(weights, tokenizer)
    chosen = choose_sources(
        weights.config,
        weights.instruction_aware,
        [*weights.base_sources, *weights.trained_sources],
        weights.lora,
    )
    plain = {name: source for name, source in chosen.items() if not is_adapter(name)}
    adapters = None
    if weights.lora is not None:
        own = {name: source for name, source in chosen.items() if is_adapter(name)}
        adapters = Adapters(weights.lora, own, plain)
    return FoundModel(
        config=weights.config,
        instruction_aware=weights.instruction_aware,
        sources=plain if adapters is None else merged_sources(adapters),
        processor_directory=weights.processor_directory,
        tokenizer=tokenizer,
        description=weights.description,
        recipe=weights.recipe,
        step=weights.step,
        adapters=adapters,
        base=base,
        trained=frozenset(
            name
            for name, source in chosen.items()
            if source in weights.trained_sources or _is_trained_within(weights, name)
        ),
    )


def _is_trained_within(weights: _Weights, name: str) -> bool:
    """Whether a parameter was trained and lies among the base's, as in an export of the whole.

    A weight that an adapter was put beside counts where the adapter is merged into it.
    """
    if weights.on_recipe or weights.recipe is None:
        return False
    section, part = weights.recipe.model, part_of(name)
    if section.train_parts.model_dump()[part] == "full":
        return True
    if section.lora is None or weights.lora is not None or part != "language":
        return False
    targets = adapter_targets(section.lora, weights.config.text_config.model_type)
    return name.endswith(tuple(f".{target}.weight" for target in targets))


def _checked_base(weights: _Weights, tokenizer: InstructionTokenizer) -> Mapping[str, str] | None:
    """The fingerprint of a recipe's base; refuses one that is not the one that was trained on."""
    if not weights.on_recipe:
        return weights.base
    sources = choose_sources(weights.config, weights.instruction_aware, weights.base_sources)
    now = fingerprint(weights.config, tokenizer, sources)
    changed = differences(weights.base or now, now)
    if changed:
        described = ", ".join(source.description for source in weights.base_sources)
        raise ValueError(
            f"{weights.description} was trained on another base: the {' and '.join(changed)} of "
            f"{described} differ from what they were; put the base back as it was"
        )
    return now


def _of_transformers(directory: Path) -> _Weights:
    found = read_json(directory / "config.json", "copy the directory again")
    aware = False if is_blip2(directory) else found.get("instruction_aware", True)
    if not isinstance(aware, bool):
        raise ValueError(
            f"{directory / 'config.json'}: instruction_aware is {aware!r}; write true or false"
        )
    config = directory_config(directory)
    recipe = _recipe_beside(directory)
    adapter = directory / ADAPTER_DIRECTORY
    lora, trained = None, []
    report = _report_beside(directory)
    if (adapter / ADAPTER_CONFIG).is_file() or report.get("adapters") == "apart":
        lora = read_adapter_settings(adapter)
        trained = [adapter_source(adapter)]
        _check_adapter(adapter, config, lora)
    return _Weights(
        config=config,
        instruction_aware=aware,
        base_sources=[directory_source(directory)],
        trained_sources=trained,
        processor_directory=processor_directory(directory),
        description=str(directory),
        recipe=recipe,
        limits=_limits(recipe),
        lora=lora,
        base=_fingerprint_in(report),
    )


def _report_beside(directory: Path) -> dict[str, Any]:
    """What an export says of itself; nothing where the directory is none."""
    file = directory / EXPORT_REPORT
    return read_json(file, "copy it again") if file.is_file() else {}


def _check_adapter(adapter: Path, config: InstructBlipConfig, lora: LoraSection) -> None:
    try:
        parameter_shapes(config, lora=lora)
    except ValueError as error:
        raise ValueError(f"{adapter} is of another language model: {error}") from error


def _of_recipe(
    recipe: Recipe, trained: list[TensorSource], description: str, **more: Any
) -> _Weights:
    """A recipe's base, overlaid with what was trained; without it, the base as it is."""
    section = recipe.model if trained else recipe.model.model_copy(update={"lora": None})
    config = base_config(section)
    bare = section.model_copy(update={"lora": None})
    return _Weights(
        config=config,
        instruction_aware=section.instruction_aware,
        base_sources=base_sources(bare, config, recipe.seed),
        trained_sources=trained,
        processor_directory=base_directory(section),
        description=description,
        recipe=recipe,
        limits=_limits(recipe),
        lora=section.lora,
        on_recipe=True,
        **more,
    )


def _of_trained_part(directory: Path) -> _Weights:
    """An export that holds what was trained and not the base: peft's or LAVIS's format."""
    report = read_json(directory / EXPORT_REPORT, "copy the export again")
    if not (directory / RECIPE_FILE).is_file():
        raise ValueError(
            f"{directory} holds only a part of a model, and without a {RECIPE_FILE} it does not "
            "say of which base; open it with the program that it was exported for, or copy the "
            "export again"
        )
    recipe = load_recipe(str(directory / RECIPE_FILE))
    _check_base_is_there(recipe, directory)
    model_type = report.get("language_model")
    trained: list[TensorSource] = []
    if report.get("format") == "lavis":
        # Adapters are merged into the language model's weights there.
        recipe = recipe.model_copy(update={"model": _without_adapters(recipe.model)})
        file = _part_of_export(directory, TRIMMED)
        trained.append(LavisSource(file, encoder_decoder=model_type == "t5"))
    elif report.get("format") == "peft" and recipe.model.lora is not None:
        if "full" in recipe.model.train_parts.model_dump().values():
            file = _part_of_export(directory, TRAINED_BESIDE)
            trained.append(SafetensorsSource([file], f"export {directory}"))
        check_adapter_settings(directory, recipe.model.lora, str(model_type))
        trained.append(adapter_source(directory))
    else:
        raise ValueError(
            f"{directory / EXPORT_REPORT} is not the report of an export in peft's or LAVIS's "
            "format; copy the export again"
        )
    return _of_recipe(recipe, trained, str(directory), base=_fingerprint_in(report))


def _part_of_export(directory: Path, name: str) -> Path:
    """A file without which the export would open as another model.

    Raises:
        ValueError: when it is not there.
    """
    if not (directory / name).is_file():
        raise ValueError(
            f"{directory} lacks {name}, in which trained weights lie; copy the export again"
        )
    return directory / name


def _without_adapters(section: ModelSection) -> ModelSection:
    parts = section.train_parts.model_copy(update={"language": "full"})
    return section.model_copy(update={"lora": None, "train_parts": parts})


def _fingerprint_in(document: Mapping[str, Any]) -> Mapping[str, str] | None:
    found = document.get("base")
    return found if isinstance(found, dict) else None


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
    _check_base_is_there(recipe, directory)
    state = read_json(directory / STATE, "choose another step")
    trained = SafetensorsSource([directory / TRAINABLE], f"checkpoint {directory}")
    return _of_recipe(
        recipe,
        [trained],
        f"step {step} of {recipe.name} ({directory})",
        step=step,
        base=_fingerprint_in(state),
    )


def _check_base_is_there(recipe: Recipe, directory: Path) -> None:
    section = recipe.model
    if section.parts is not None:
        return  # its files are looked for one by one
    base = base_directory(section)
    if not base.is_dir():
        key = "model.base" if section.base is not None else "model.random_base.processor"
        raise ValueError(
            f"{directory} holds only what was trained; the rest is in {base}, which its recipe "
            f"names ({key}) and which is not there. Relative paths begin at the working directory: "
            "call from where it was trained, or put the directory back"
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
