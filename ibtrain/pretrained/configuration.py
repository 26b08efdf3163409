"""Reading the configuration of a model found on disk, without running what lies beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, Blip2Config, InstructBlipConfig, PretrainedConfig
from transformers.models.auto import CONFIG_MAPPING

from ibtrain.files import read_json
from ibtrain.pretrained.releases import WITHOUT_EFFECT, FieldError, check_known, translated

# What transformers and torch raise at a configuration with values that no model can have.
UNUSABLE = (
    *(ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError),
    AssertionError,  # torch's own, of a padding token beyond the embeddings
    StrictDataclassError,  # transformers 5 checks types, and this is none of the above
)
_WHOLE = {"instructblip": InstructBlipConfig, "blip-2": Blip2Config}
_SECTIONS = ("vision_config", "qformer_config", "text_config")
# Of a whole, beside its sections; its class builds all of these before it lists them. The released
# InstructBLIPs are opened as video models too, which have a place-holder of their own.
_NOT_OURS = ("use_decoder_only_language_model", "video_token_id", "video_token_index")
_OF_THE_WHOLE = frozenset(
    (
        *_NOT_OURS,
        *("image_text_hidden_size", "image_token_id", "image_token_index", "num_query_tokens"),
        *("initializer_factor", "initializer_range", "instruction_aware", "model_type"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"),
    )
)
LANGUAGE_TYPES = ("llama", "t5")
"""Of a language model that can be built."""
_REMEDY = "copy it again, or name a supported model"


def read_model_type(directory: Path) -> str | None:
    """The type of model that a directory's config.json names.

    Raises:
        ValueError: when the directory or its config.json is missing, or is not a JSON object.
    """
    found = _read(directory).get("model_type")
    return found if isinstance(found, str) else None


def _read(directory: Path) -> dict[str, Any]:
    file = directory / "config.json"
    if not file.is_file():
        found = "it has no config.json" if directory.is_dir() else "there is no such directory"
        raise ValueError(
            f"{directory} is not a model: {found}; give the directory of a downloaded model, or of "
            "an export (`ibtrain export RUN --to hf` writes one)"
        )
    return read_json(file, _REMEDY)


def open_config(directory: Path) -> Any:
    """transformers' configuration of a directory, whichever release wrote it. Code that the
    directory holds is never run.

    Args:
        directory: of a whole InstructBLIP or BLIP-2, or of a language model; has a config.json.

    Raises:
        ValueError: when transformers cannot make a configuration of config.json, or would ignore a
            part of it.
    """
    file = directory / "config.json"
    values = _read(directory)
    model_type = values.get("model_type")
    whole = _WHOLE.get(model_type) if isinstance(model_type, str) else None
    try:
        config = _language(values, str(file)) if whole is None else _whole(values, whole, str(file))
    except FieldError:
        raise
    except (*UNUSABLE, OSError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{file} is no configuration that transformers can open ({type(error).__name__}, "
            f"{first}); {_REMEDY}"
        ) from error
    config.name_or_path = str(directory)
    return config


def _whole(values: Mapping[str, Any], kind: Any, where: str) -> PretrainedConfig:
    """The configuration of an InstructBLIP or BLIP-2 with its three sections."""
    fields = {
        key: value
        for key, value in values.items()
        if key not in WITHOUT_EFFECT and not key.startswith("_")
    }
    sections = {key: fields.pop(key, None) or {} for key in _SECTIONS}
    check_known(fields, _OF_THE_WHOLE, where)
    for key in _NOT_OURS:
        fields.pop(key, None)
    queries = fields.get("num_query_tokens", 1)
    if type(queries) is not int or queries < 1:
        raise FieldError(f"{where}.num_query_tokens is {str(queries)[:40]!r}; 1 or more is wanted")
    for key, section in sections.items():
        if not isinstance(section, dict):
            raise FieldError(f"{where}: {key} is {str(section)[:40]!r}; an object is wanted")
        own = kind.sub_configs[key]
        opened = (
            _language(section, f"{where}: {key}")
            if own is AutoConfig
            else own(**translated(section, own, f"{where}: {key}"))
        )
        sections[key] = opened.to_dict()
    return kind(**fields, **sections)


def _language(values: Mapping[str, Any], where: str) -> PretrainedConfig:
    """The configuration of a language model, alone or as the section of a whole."""
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise FieldError(
            f"{where} is no configuration that transformers can open: its model type is "
            f"{str(model_type)[:40]!r}; {_REMEDY}"
        )
    kind = CONFIG_MAPPING[model_type]
    if model_type not in LANGUAGE_TYPES:
        return kind.from_dict(dict(values))  # refused by whoever builds a language model of it
    return kind(**translated(values, kind, where))


def read_config(directory: Path) -> InstructBlipConfig:
    """The configuration of a directory in transformers' InstructBLIP format.

    Raises:
        ValueError: when the directory or its config.json is missing, or is of another model.
    """
    found = read_model_type(directory)
    if found != "instructblip":
        raise ValueError(
            f"{directory / 'config.json'} is of model type {found and found[:40]!r}; an "
            "'instructblip' is wanted"
        )
    config: InstructBlipConfig = open_config(directory)
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
