"""Whether a language model is the Vicuna that the released InstructBLIP belongs to, which is v1.1.

Another one loads as well and answers nonsense (LAVIS issues 297, 316, 365, 371, 415, 621). What can
be told from a directory, and is:

- a raw delta: weights to be added to LLaMA's, whose norms are near 0 where a model's are not;
- v1.5: made of Llama 2, with 4,096 positions and an epsilon of 1e-5 (v1.1: 2,048 and 1e-6);
- v0: 32,001 embeddings, the last of a padding token (v1.1: 32,000);
- and any that its configuration or its directory's name calls by another version.

What cannot be told: v1.1 from v1.3 or from LLaMA itself, which have the same shapes and settings,
unless a name says so. The separator of v0's conversations (`###`) is in no file of the model.
"""

import re
from pathlib import Path

from transformers import PretrainedConfig

from ibtrain.files import read_json
from ibtrain.pretrained.tensors import TensorSource

NORM = "language_model.model.norm.weight"
SMALLEST_NORM = 0.05
"""LLaMA's last norm weighs 1 to 2 on average, its difference to Vicuna's below 0.01."""
V0_ROWS = 32_001
LLAMA2_POSITIONS, LLAMA2_EPSILON = 4096, 1e-5
_REMEDY = (
    "take lmsys/vicuna-7b-v1.1 or -13b-v1.1, or for another Llama write "
    "model.language_release=other"
)
_VERSION = re.compile(r"vicuna[^/]*?[-_]v(\d(?:\.\d)?)(?![\d.])")


def check_whole(source: TensorSource, where: str) -> None:
    """Refuses a raw delta, whatever the language model is meant to be.

    Raises:
        ValueError: when the last norm's weights are near 0.
    """
    if NORM not in source.shapes():
        return
    mean = source.get(NORM).float().abs().mean().item()
    if not mean >= SMALLEST_NORM:
        raise ValueError(
            f"{where} is a raw delta, not a model: the weights of its last norm average {mean:.2g} "
            "(a whole Llama's are near 1). Add it to LLaMA's weights first (FastChat's "
            "apply_delta), or take a release that is whole"
        )


def check_vicuna(config: PretrainedConfig, names: list[str], where: str, *, alone: bool) -> None:
    """Refuses a Llama that is not Vicuna v1.1, as far as that can be told.

    Args:
        config: the language model's, as it lies in its directory.
        names: what it is called: its directory, the name in its configuration.
        where: for messages.
        alone: whether it is a language model by itself. A whole InstructBLIP has 32,001 rows too.

    Raises:
        ValueError: naming the version that it is.
    """
    if config.model_type != "llama":
        raise ValueError(
            f"{where} is of type {config.model_type!r} and no Vicuna, as model.language_release "
            "asks for; take that key out"
        )
    for name in names:
        if "delta" in name.lower():
            raise ValueError(
                f"{where} is called {name!r}, a raw delta and not a model: add it to LLaMA's "
                f"weights first (FastChat's apply_delta); {_REMEDY}"
            )
        found = _VERSION.search(name.lower())
        if found and found.group(1) not in ("1.1", "1"):
            raise ValueError(
                f"{where} is called {name!r}: Vicuna v{found.group(1)}, and InstructBLIP was "
                f"trained on v1.1; {_REMEDY}"
            )
    positions = config.max_position_embeddings
    epsilon = config.rms_norm_eps
    if positions >= LLAMA2_POSITIONS or epsilon >= LLAMA2_EPSILON:
        raise ValueError(
            f"{where} is made of Llama 2 as Vicuna v1.5 is ({positions} positions, epsilon "
            f"{epsilon:g}; v1.1 has 2048 and 1e-06), and InstructBLIP was trained on v1.1; "
            f"{_REMEDY}"
        )
    if alone and config.vocab_size == V0_ROWS:
        raise ValueError(
            f"{where} has {V0_ROWS} embeddings, as Vicuna v0 with its padding token has (v1.1: "
            f"32000), and InstructBLIP was trained on v1.1; {_REMEDY}"
        )


def names_of(directory: Path, config: PretrainedConfig) -> list[str]:
    """What a language model is called by its directory and its configuration."""
    # Of a model in the hub's cache the name is three levels up (models--owner--name).
    cached = [part for part in directory.resolve().parts if part.startswith("models--")]
    inside = [str(getattr(config, "_name_or_path", "") or "")]
    file = directory / "config.json"
    if file.is_file():
        # transformers puts the directory instead of the name that the file has.
        inside.append(str(read_json(file, "copy it again").get("_name_or_path") or ""))
    names = (directory.name, *cached, *(name for name in inside if name != str(directory)))
    return list(dict.fromkeys(name for name in names if name))
