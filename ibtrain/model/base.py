"""The base that a recipe names: its configuration, its tokenizers' directory, its weights."""

from pathlib import Path

from transformers import InstructBlipConfig, InstructBlipQFormerConfig, InstructBlipVisionConfig
from transformers.models.auto import CONFIG_MAPPING

from ibtrain.config import ModelSection, RandomBase
from ibtrain.model.lora import AdapterSource
from ibtrain.model.weights import (
    RandomSource,
    SafetensorsSource,
    TensorSource,
    parameter_shapes,
    read_config,
)


def base_directory(section: ModelSection) -> Path:
    """The directory that holds both tokenizers and the image processor."""
    if section.base is not None:
        return section.base
    assert section.random_base is not None
    return section.random_base.processor


def base_config(section: ModelSection) -> InstructBlipConfig:
    """The model's configuration.

    Raises:
        ValueError: when the base directory is not one, or the given architecture is not usable.
    """
    if section.base is not None:
        return read_config(section.base)
    assert section.random_base is not None
    return _architecture(section.random_base)


def base_sources(
    section: ModelSection, config: InstructBlipConfig, seed: int
) -> list[TensorSource]:
    """Where the base's weights come from, and those of new adapters where there are any."""
    sources: list[TensorSource] = []
    if section.base is not None:
        sources.append(SafetensorsSource.of_directory(section.base))
    else:
        assert section.random_base is not None
        shapes = parameter_shapes(config, section.instruction_aware)
        sources.append(RandomSource(shapes, seed, section.random_base.initializer_range))
    if section.lora is not None:
        shapes = parameter_shapes(config, section.instruction_aware, section.lora)
        sources.append(AdapterSource(shapes, seed))
    return sources


def _architecture(random_base: RandomBase) -> InstructBlipConfig:
    """A configuration from a recipe's mappings; unknown keys are refused, not swallowed."""
    language = dict(random_base.language)
    model_type = language.pop("model_type", "llama")
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"model.random_base.language.model_type {model_type!r} is not a type that transformers "
            "knows; use 'llama'"
        )
    sections = {
        "vision": (InstructBlipVisionConfig, random_base.vision),
        "qformer": (InstructBlipQFormerConfig, random_base.qformer),
        "language": (CONFIG_MAPPING[model_type], language),
    }
    built = {}
    for name, (kind, values) in sections.items():
        unknown = sorted(set(values) - set(kind().to_dict()))
        if unknown:
            raise ValueError(
                f"model.random_base.{name} has the unknown key {unknown[0]!r}; keys are those of "
                f"transformers' {kind.__name__}"
            )
        built[name] = kind(**values).to_dict()
    return InstructBlipConfig(
        vision_config=built["vision"],
        qformer_config=built["qformer"],
        text_config=built["language"],
        num_query_tokens=random_base.num_query_tokens,
    )
