"""What a base is known by: its configuration, its tokenizers, and a sample of its weights.

Kept with every checkpoint and export, which hold what was trained and not the base: opened on
another base they would answer nonsense. The sample finds another model, another version or dtype of
it; a few damaged bytes somewhere it may miss.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import InstructBlipConfig, PretrainedConfig, PreTrainedTokenizerBase

from ibtrain.pretrained.releases import DEFAULT_THETA, rope_of
from ibtrain.pretrained.tensors import TensorSource
from ibtrain.tokenization import InstructionTokenizer

SAMPLED_TENSORS = 64
SAMPLED_VALUES = 1024
_PROBE = "Question: What's written on the 2nd sign, café?  Short answer:"
# What decides on shapes and arithmetic, and has one name in all releases of transformers.
_VISION = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
    "qkv_bias",
)
_QFORMER = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "cross_attention_frequency",
    "max_position_embeddings",
)
_LANGUAGE = {
    "llama": (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "hidden_act",
        "rms_norm_eps",
    ),
    "t5": (
        "vocab_size",
        "d_model",
        "d_kv",
        "d_ff",
        "num_layers",
        "num_decoder_layers",
        "num_heads",
        "dense_act_fn",
        "is_gated_act",
        "layer_norm_epsilon",
        "relative_attention_num_buckets",
        "relative_attention_max_distance",
    ),
}


def fingerprint(
    config: InstructBlipConfig,
    tokenizer: InstructionTokenizer,
    sources: Mapping[str, TensorSource],
) -> dict[str, str]:
    """Digests of a base's `config`, `tokenizers` and `weights`.

    Args:
        config: of the base.
        tokenizer: both of its tokenizers.
        sources: for each of its parameters where its value is read from; a sample is read.
    """
    return {
        "config": _digest(_architecture(config)),
        "tokenizers": _digest([_vocabulary(t) for t in (tokenizer.language, tokenizer.qformer)]),
        "weights": _sampled(sources),
    }


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Which of a fingerprint's entries differ, in words; none for the same base."""
    return [key for key in ("config", "tokenizers", "weights") if then.get(key) != now.get(key)]


def _architecture(config: InstructBlipConfig) -> dict[str, Any]:
    text = config.text_config
    keys = _LANGUAGE.get(text.model_type, ())
    language = {"model_type": text.model_type} | {key: getattr(text, key) for key in keys}
    return {
        "vision": {key: getattr(config.vision_config, key) for key in _VISION},
        "qformer": {key: getattr(config.qformer_config, key) for key in _QFORMER},
        "language": language | _rotary(text),
        "num_query_tokens": config.num_query_tokens,
    }


def _rotary(text: PretrainedConfig) -> dict[str, Any]:
    """The rotary positions of a Llama, where they are not the usual ones: fingerprints were taken
    without them once, and those of the usual ones stay what they were.
    """
    if text.model_type != "llama":
        return {}
    rope = rope_of(text)
    if rope == {"rope_type": "default", "rope_theta": DEFAULT_THETA}:
        return {}
    if rope["rope_type"] != "default":  # some releases write this down, and all take it so
        rope.setdefault("original_max_position_embeddings", text.max_position_embeddings)
    # JSON tells 500000 from 500000.0, and which of them is written is a release's habit.
    same = {
        key: float(value) if isinstance(value, int) and not isinstance(value, bool) else value
        for key, value in rope.items()
    }
    return {"rotary_positions": same}


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    # <image> is added by whoever saves a processor, and no text is given it.
    vocabulary = {k: v for k, v in tokenizer.get_vocab().items() if k != "<image>"}
    ids = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    return [sorted(vocabulary.items()), ids, tokenizer(_PROBE).input_ids]


def _sampled(sources: Mapping[str, TensorSource]) -> str:
    names = sorted(sources)
    shapes = [[name, list(sources[name].shapes()[name])] for name in names]
    digest = hashlib.sha256(json.dumps(shapes).encode())
    step = max(1, len(names) // SAMPLED_TENSORS)
    for name in names[::step]:
        values = _values(sources[name].get(name))
        digest.update(f"{name} {values.dtype}".encode())
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _values(tensor: Tensor) -> Tensor:
    """Evenly spaced values; of a tensor that is mapped only their pages are read."""
    flat = tensor.flatten()
    step = max(1, flat.numel() // SAMPLED_VALUES)
    return flat[::step][:SAMPLED_VALUES].contiguous()


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
