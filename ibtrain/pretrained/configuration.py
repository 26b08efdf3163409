"""Reading the configuration of a model found on disk, without running what lies beside it."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, InstructBlipConfig

# What transformers and torch raise at a configuration with values that no model can have.
UNUSABLE = (
    *(ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError),
    StrictDataclassError,  # transformers 5 checks types, and this is none of the above
)


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
