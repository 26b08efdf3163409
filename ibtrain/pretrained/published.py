"""The published sizes, to plan and count with before their weights are on the disk.

Figures of the released models (LAVIS `configs/models/blip2/blip2_instruct_*.yaml`, and the language
models' own config.json): one tower and Q-Former, four language models.
"""

from typing import Any

from transformers import InstructBlipConfig
from transformers.models.auto import CONFIG_MAPPING

from ibtrain.config import ModelSection

QFORMER_VOCABULARY = 30523
"""BERT's and the token [DEC], which every released InstructBLIP has."""

_VICUNA_7B = {"model_type": "llama", "vocab_size": 32001}
_FLAN_T5_XL = {
    "model_type": "t5",
    "d_model": 2048,
    "d_ff": 5120,
    "num_layers": 24,
    "num_heads": 32,
    "feed_forward_proj": "gated-gelu",
    "dense_act_fn": "gelu",
    "tie_word_embeddings": False,
}
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "vicuna-7b": _VICUNA_7B,
    "vicuna-13b": _VICUNA_7B
    | {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
    "flan-t5-xl": _FLAN_T5_XL,
    "flan-t5-xxl": _FLAN_T5_XL | {"d_model": 4096, "d_ff": 10240, "num_heads": 64},
}
"""By the names that their directories commonly have; transformers' defaults are a Llama-7B's."""


def published_config(name: str) -> InstructBlipConfig:
    """The released InstructBLIP over one of `LANGUAGE_MODELS`."""
    language = dict(LANGUAGE_MODELS[name])
    kind = CONFIG_MAPPING[language.pop("model_type")]
    return InstructBlipConfig(
        vision_config={},  # transformers' defaults are the released tower
        qformer_config={"vocab_size": QFORMER_VOCABULARY},
        text_config=kind(**language).to_dict(),
        num_query_tokens=32,
    )


def published_name(section: ModelSection) -> str | None:
    """Which of `LANGUAGE_MODELS` a recipe's base is, by the name of its language model's directory
    (`vicuna-13b-v1.1`) or of the whole (`Salesforce/instructblip-flan-t5-xl`).
    """
    paths = [section.base]
    if section.parts is not None:
        paths += [section.parts.language, section.parts.stage2]
    for path in paths:
        for name in LANGUAGE_MODELS:
            if path is not None and name in path.name.lower():
                return name
    return None
