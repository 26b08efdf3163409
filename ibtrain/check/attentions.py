"""The attentions of a model, as the kernels' table of backends knows them: to show, not to run."""

import torch
from transformers import (
    InstructBlipConfig,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
    PretrainedConfig,
    T5Config,
)

from ibtrain.config import TrainParts
from ibtrain.kernels.backends import AttentionKind

Attentions = dict[str, AttentionKind]


def attentions_of(
    config: InstructBlipConfig, train_parts: TrainParts, device: torch.device, dtype: torch.dtype
) -> Attentions:
    """Every attention of a model in training, by name."""
    return {
        **_tower(config.vision_config, device, dtype),
        **_qformer(config.qformer_config, train_parts, device, dtype),
        **_language(config.text_config, train_parts, device, dtype),
    }


def attentions_of_the_family(device: torch.device, dtype: torch.dtype) -> Attentions:
    """Those of the published sizes: one tower and Q-Former, heads of 128 (Vicuna) and 64 (T5)."""
    parts = TrainParts()
    return {
        **_tower(InstructBlipVisionConfig(), device, dtype),
        **_qformer(InstructBlipQFormerConfig(), parts, device, dtype),
        **_language(LlamaConfig(), parts, device, dtype),
        **_language(T5Config(), parts, device, dtype),
    }


def _tower(
    config: InstructBlipVisionConfig, device: torch.device, dtype: torch.dtype
) -> Attentions:
    width = config.hidden_size // config.num_attention_heads
    return {"vision tower": AttentionKind(device, dtype, width)}


def _qformer(
    config: InstructBlipQFormerConfig,
    train_parts: TrainParts,
    device: torch.device,
    dtype: torch.dtype,
) -> Attentions:
    width = config.hidden_size // config.num_attention_heads
    # A frozen part is in evaluation mode.
    dropout = train_parts.qformer == "full" and config.attention_probs_dropout_prob > 0
    kind = AttentionKind(device, dtype, width, dropout=dropout)
    return {"Q-Former self": kind, "Q-Former cross": kind}


def _language(
    config: PretrainedConfig, train_parts: TrainParts, device: torch.device, dtype: torch.dtype
) -> Attentions:
    trained = train_parts.language != "frozen"
    if config.model_type == "llama":
        width = getattr(config, "head_dim", None)
        width = width or config.hidden_size // config.num_attention_heads
        dropout = trained and config.attention_dropout > 0
        return {"Llama": AttentionKind(device, dtype, width, causal=True, dropout=dropout)}

    def kind(*, causal: bool, bias: bool) -> AttentionKind:
        dropout = trained and config.dropout_rate > 0
        return AttentionKind(device, dtype, config.d_kv, causal, bias, dropout)

    return {
        "T5 encoder": kind(causal=False, bias=True),
        "T5 decoder": kind(causal=True, bias=True),
        "T5 cross": kind(causal=False, bias=False),
    }
