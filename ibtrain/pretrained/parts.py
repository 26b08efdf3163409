"""A base put together from the files that its parts were released in.

Instruction tuning begins from BLIP-2's second stage, with the text feed-forward of its first, which
the second leaves out; vision tower and language model are files of their own (facts of LAVIS's
`blip2_vicuna_instruct.py` and `blip2_t5_instruct.py`).
"""

from pathlib import Path
from typing import Any

from transformers import (
    InstructBlipConfig,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    PretrainedConfig,
)

from ibtrain.config import ModelSection, Parts
from ibtrain.model.instructblip import part_of
from ibtrain.pretrained.configuration import open_config
from ibtrain.pretrained.fit import parameter_shapes
from ibtrain.pretrained.hub import resolve_directory
from ibtrain.pretrained.lavis import LavisSource
from ibtrain.pretrained.processor import (
    is_vicuna,
    language_directory,
    language_tokenizer,
    qformer_tokenizer,
)
from ibtrain.pretrained.releases import known_fields, translated
from ibtrain.pretrained.sources import (
    GrownSource,
    RenamedSource,
    from_blip2_name,
    has_weights,
    source_of_directory,
)
from ibtrain.pretrained.tensors import RandomSource, TensorSource
from ibtrain.pretrained.vicuna import check_vicuna, check_whole, names_of

_LANGUAGE = "language_model."


def parts_config(section: ModelSection) -> InstructBlipConfig:
    """The configuration of a base given in parts.

    Raises:
        ValueError: when a part is missing or is not what it should be.
    """
    parts = _parts(section)
    vision = _configured(InstructBlipVisionConfig, parts.vision_config, "vision_config")
    vocabulary = {"vocab_size": len(qformer_tokenizer(section))}
    qformer = _configured(
        InstructBlipQFormerConfig, vocabulary | parts.qformer_config, "qformer_config"
    )
    return InstructBlipConfig(
        vision_config=vision.to_dict(),
        qformer_config=qformer.to_dict(),
        text_config=_language_config(section).to_dict(),
        num_query_tokens=parts.num_query_tokens,
    )


def parts_sources(
    section: ModelSection, config: InstructBlipConfig, seed: int
) -> list[TensorSource]:
    """Where the weights of a base given in parts come from; later ones win.

    Raises:
        ValueError: when a file cannot be read or holds something else.
    """
    parts = _parts(section)
    shapes = parameter_shapes(config, section.instruction_aware)
    encoder_decoder = config.text_config.model_type == "t5"
    sources: list[TensorSource] = []
    if parts.random:
        chosen = {name: shape for name, shape in shapes.items() if part_of(name) in parts.random}
        sources.append(RandomSource(chosen, seed, config.qformer_config.initializer_range))
    rows = {"qformer.embeddings.word_embeddings.weight": config.qformer_config.vocab_size}
    bert = resolve_directory(parts.bert, section.allow_download)
    if has_weights(bert):
        renamed = RenamedSource(source_of_directory(bert), _from_bert_name)
        sources.append(GrownSource(renamed, rows))
    if parts.vision is not None:
        sources.append(
            LavisSource(
                parts.vision,
                encoder_decoder=encoder_decoder,
                prefix="visual_encoder.",
                last_block=config.vision_config.num_hidden_layers - 1,
            )
        )
    sources.append(_language_source(section, config))
    for key in ("stage1", "stage2", "instructblip"):
        file = getattr(parts, key)
        if file is None:
            continue
        if file.is_file():
            lavis = LavisSource(file, encoder_decoder=encoder_decoder)
            _check_stage(lavis, key, file)
            sources.append(lavis)
        else:
            sources.append(_blip2_source(section, file, config))
    return [source for source in sources if source.shapes()]


def _check_stage(source: LavisSource, key: str, file: Path) -> None:
    """Refuses a file of another stage than its key says: the wrong weights would win."""
    if key == "stage1" and source.has_projection:
        raise ValueError(
            f"model.parts.stage1 {file} has a projection into a language model, which BLIP-2's "
            "first stage has not: name it in model.parts.stage2, or in model.parts.instructblip"
        )
    if key != "stage1" and source.is_first_stage:
        raise ValueError(
            f"model.parts.{key} {file} has the heads of BLIP-2's first stage, so it is no later "
            "one: name it in model.parts.stage1"
        )


def _is_alone(section: ModelSection) -> bool:
    """Whether the language model has a directory of its own."""
    return _parts(section).language is not None


def _parts(section: ModelSection) -> Parts:
    assert section.parts is not None
    return section.parts


def _configured(kind: Any, values: dict[str, Any], key: str) -> PretrainedConfig:
    unknown = sorted(set(values) - known_fields(kind))
    if unknown:
        raise ValueError(
            f"model.parts.{key} has the unknown key {unknown[0]!r}; keys are those of "
            f"transformers' {kind.__name__}"
        )
    return kind(**translated(values, kind, f"model.parts.{key}"))


def _language_config(section: ModelSection) -> PretrainedConfig:
    """The language model's configuration, with LAVIS's changes: room for the padding token that
    Vicuna got, exact GELU in a T5.
    """
    directory = language_directory(section)
    config = open_config(directory)
    config = getattr(config, "text_config", config)
    if config.model_type == "t5":
        config.dense_act_fn = "gelu"
    if section.language_release == "vicuna-v1.1" or is_vicuna(section):
        names = names_of(directory, config)
        check_vicuna(config, names, f"model.parts.language {directory}", alone=_is_alone(section))
        tokenizer = language_tokenizer(section)
        config.vocab_size = max(config.vocab_size, len(tokenizer))
        config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    return config


def _language_source(section: ModelSection, config: InstructBlipConfig) -> TensorSource:
    directory = language_directory(section)
    source = source_of_directory(directory)
    if _is_alone(section):
        source = RenamedSource(source, lambda name: _LANGUAGE + name)
    else:
        source = RenamedSource(source, lambda name: name if name.startswith(_LANGUAGE) else None)
    check_whole(source, f"the language model of {directory}")
    rows = config.text_config.vocab_size
    grown = ("model.embed_tokens.weight", "lm_head.weight")
    if config.text_config.model_type != "llama":
        return source
    return GrownSource(source, {_LANGUAGE + name: rows for name in grown})


def _blip2_source(section: ModelSection, path: Path, config: InstructBlipConfig) -> TensorSource:
    """A directory in transformers' BLIP-2 (or InstructBLIP) format without its language model.

    Its projection is left out where it leads into another kind of language model.

    Raises:
        ValueError: when it is none.
    """
    directory = resolve_directory(path, section.allow_download)
    if not (directory / "config.json").is_file():
        raise ValueError(
            f"{path} is neither a file from LAVIS nor a model's directory; give the path of the "
            "download"
        )
    theirs = open_config(directory)
    other = theirs.text_config.model_type != config.text_config.model_type

    def rename(name: str) -> str | None:
        if name.startswith(_LANGUAGE) or (other and name.startswith("language_projection.")):
            return None
        return from_blip2_name(name)

    return RenamedSource(source_of_directory(directory), rename)


def _from_bert_name(name: str) -> str | tuple[str, ...] | None:
    """Our names of a tensor of BERT. The queries' feed-forward begins as a copy of the text's
    (`blip2_qformer.py`); what the Q-Former does not have (token types, heads) is passed over.
    """
    name = name.removeprefix("bert.").replace("gamma", "weight").replace("beta", "bias")
    if name.startswith("embeddings."):
        name = name.replace("LayerNorm", "layernorm")
        kept = "word_embeddings", "position_embeddings.", "layernorm"
        return f"qformer.{name}" if name.partition(".")[2].startswith(kept) else None
    if not name.startswith("encoder.layer."):
        return None
    ours = "qformer." + name.replace(".attention.self.", ".attention.attention.")
    layer, _, rest = ours.removeprefix("qformer.encoder.layer.").partition(".")
    for half in ("intermediate.", "output."):
        if rest.startswith(half):
            query = rest.replace(half, f"{half[:-1]}_query.", 1)
            return ours, f"qformer.encoder.layer.{layer}.{query}"
    return ours
