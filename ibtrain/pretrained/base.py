"""The base that a recipe names: its configuration, its tokenizers' directory, its weights."""

import logging
from pathlib import Path

from transformers import (
    Blip2Config,
    InstructBlipConfig,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
)
from transformers.models.auto import CONFIG_MAPPING

from ibtrain.config import ModelSection, RandomBase
from ibtrain.pretrained.census import TEXT_PATH, census
from ibtrain.pretrained.configuration import UNUSABLE, open_config, read_config, read_model_type
from ibtrain.pretrained.fingerprint import fingerprint
from ibtrain.pretrained.fit import choose_sources, parameter_shapes
from ibtrain.pretrained.hub import resolve_directory
from ibtrain.pretrained.parts import parts_config, parts_sources
from ibtrain.pretrained.processor import QFORMER_TOKENIZER, blip2_processor, parts_processor
from ibtrain.pretrained.published import LANGUAGE_MODELS, published_config, published_name
from ibtrain.pretrained.releases import FieldError, known_fields, translated
from ibtrain.pretrained.sources import RenamedSource, from_blip2_name, source_of_directory
from ibtrain.pretrained.tensors import AdapterSource, RandomSource, TensorSource
from ibtrain.pretrained.vicuna import check_vicuna, check_whole, names_of
from ibtrain.tokenization import InstructionTokenizer

logger = logging.getLogger(__name__)


def base_directory(section: ModelSection) -> Path:
    """The directory that holds both tokenizers and the image processor."""
    if section.base is not None:
        return processor_directory(resolve_directory(section.base, section.allow_download))
    if section.parts is not None:
        return parts_processor(section.model_dump_json())
    assert section.random_base is not None
    return section.random_base.processor


def base_config(section: ModelSection) -> InstructBlipConfig:
    """The model's configuration.

    Raises:
        ValueError: when the base directory is not one, a part of it is missing, or the given
            architecture is not usable.
    """
    if section.base is not None:
        return directory_config(resolve_directory(section.base, section.allow_download))
    if section.parts is not None:
        return parts_config(section)
    assert section.random_base is not None
    return _architecture(section.random_base)


def config_or_published(section: ModelSection) -> tuple[InstructBlipConfig, str]:
    """The model's configuration, and in words where it is from: the base, or, where that is not on
    this disk, the published size of its name.

    Raises:
        ValueError: when the base cannot be read, or is not there and its name tells no size.
    """
    try:
        return base_config(section), "the base's own configuration"
    except (ValueError, OSError) as error:
        missing = [path for path in _config_directories(section) if not path.exists()]
        name = published_name(section)
        if not missing:
            raise
        if name is None:
            raise ValueError(
                f"{missing[0]} is not there, and the base's name is none of a published size "
                f"({', '.join(LANGUAGE_MODELS)}): put it there, or name the base so"
            ) from error
    return published_config(name), f"{name} as published, for {missing[0]} is not on this disk"


def _config_directories(section: ModelSection) -> list[Path]:
    """Where `base_config` reads."""
    parts = section.parts
    directories = [section.base] if parts is None else [parts.language or parts.stage2, parts.bert]
    return [directory for directory in directories if directory is not None]


def base_sources(
    section: ModelSection, config: InstructBlipConfig, seed: int
) -> list[TensorSource]:
    """Where the base's weights come from, and those of new adapters where there are any.

    Raises:
        ValueError: when weights cannot be read, or the language model is not the one it must be.
    """
    sources: list[TensorSource] = []
    if section.base is not None:
        directory = resolve_directory(section.base, section.allow_download)
        sources.append(directory_source(directory))
        check_whole(sources[0], f"the language model of {directory}")
        if section.language_release == "vicuna-v1.1":
            names = names_of(directory, config.text_config)
            check_vicuna(config.text_config, names, str(directory), alone=False)
    elif section.parts is not None:
        sources.extend(parts_sources(section, config, seed))
    else:
        assert section.random_base is not None
        shapes = parameter_shapes(config, section.instruction_aware)
        sources.append(RandomSource(shapes, seed, section.random_base.initializer_range))
    if section.lora is not None:
        shapes = parameter_shapes(config, section.instruction_aware, section.lora)
        sources.append(AdapterSource(shapes, seed))
    return sources


def record_base(
    section: ModelSection, config: InstructBlipConfig, tokenizer: InstructionTokenizer, seed: int
) -> dict[str, str]:
    """The base's fingerprint; the census of what came from where is said on the way.

    Raises:
        ValueError: when a parameter is in none of the given weights, or they do not fit.
    """
    bare = section.model_copy(update={"lora": None})
    sources = choose_sources(config, section.instruction_aware, base_sources(bare, config, seed))
    shapes = parameter_shapes(config, section.instruction_aware)
    rows = census(sources, shapes)
    for row in rows:
        logger.info(
            "%-19s %15s parameters from %s", row.component, f"{row.parameters:,}", row.source
        )
    if section.parts is not None and any(
        row.component == TEXT_PATH and str(section.parts.bert) in row.source for row in rows
    ):
        logger.warning(
            "the Q-Former's text feed-forward is plain BERT's, which has never seen an image; "
            "BLIP-2's first stage has it trained: name that checkpoint in model.parts.stage1"
        )
    return fingerprint(config, tokenizer, sources)


def is_blip2(directory: Path) -> bool:
    """Whether a directory is in BLIP-2 format, whose Q-Former reads no instruction."""
    return bool(read_model_type(directory) == Blip2Config.model_type)


def directory_config(directory: Path) -> InstructBlipConfig:
    """The configuration of a directory in InstructBLIP or BLIP-2 format, as an InstructBLIP's.

    Raises:
        ValueError: when the directory or its config.json is missing, or is of another model.
    """
    if not is_blip2(directory):
        return read_config(directory)
    blip2 = open_config(directory)
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
        name_or_path=blip2.name_or_path,
    )


def processor_directory(directory: Path) -> Path:
    """Where the tokenizers of a model directory lie: in it, or, for a BLIP-2 as it was released,
    which has no Q-Former tokenizer and needs none, in one that was made from it.
    """
    needs_none = (directory / "config.json").is_file() and is_blip2(directory)
    if needs_none and not (directory / QFORMER_TOKENIZER).is_dir():
        return blip2_processor(directory)
    return directory


def directory_source(directory: Path) -> TensorSource:
    """The weights of a directory in InstructBLIP or BLIP-2 format, under our names."""
    source = source_of_directory(directory)
    return RenamedSource(source, from_blip2_name) if is_blip2(directory) else source


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
        unknown = sorted(set(values) - known_fields(kind))
        if unknown:
            raise ValueError(
                f"model.random_base.{name} has the unknown key {unknown[0]!r}; keys are those of "
                f"transformers' {kind.__name__}"
            )
        try:
            fields = translated(values, kind, f"model.random_base.{name}")
            built[name] = kind(**fields).to_dict()
        except FieldError:
            raise
        except UNUSABLE as error:
            first = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"model.random_base.{name} is no {kind.__name__} ({type(error).__name__}, "
                f"{first}); correct the value"
            ) from error
    return InstructBlipConfig(
        vision_config=built["vision"],
        qformer_config=built["qformer"],
        text_config=built["language"],
        num_query_tokens=random_base.num_query_tokens,
    )
