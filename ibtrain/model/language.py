"""transformers' language models, unpatched, over packed rows: Llama (Vicuna) and T5 (Flan-T5).

A Llama reads each sample as one row, [visual][instruction][answer]. Attention goes in through
transformers' own `AttentionInterface`: a model built here calls `varlen_attention` when it is
handed `cu_seqlens` (a packed row), and transformers' SDPA otherwise (generation, where prompts are
batched and there is a key-value cache). A T5 reads [visual][instruction] in its encoder and writes
the answer in its decoder (t5.py).

Shapes: T packed tokens, B samples, A answer tokens, D width, H heads, G key heads, K head width,
V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import AttentionInterface

from ibtrain.batch import Batch
from ibtrain.config import LoraSection
from ibtrain.kernels import varlen_attention
from ibtrain.model.fused import use_kernels
from ibtrain.model.lora import add_adapters
from ibtrain.model.t5 import PackedRows, packed_answers, tie_as_configured

ATTENTION_NAME = "ibtrain_varlen"


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int = 0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: [1, H, T, K] packed, or [B, H, L, K] without cu_seqlens."""
    if cu_seqlens is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out, None
    query_THK, key_TGK, value_TGK = (rows[0].transpose(0, 1) for rows in (query, key, value))
    out_THK = varlen_attention(
        query_THK,
        key_TGK,
        value_TGK,
        cu_seqlens,
        cu_seqlens,
        max_seqlen,
        max_seqlen,
        causal=True,
        scale=scaling,
        dropout_p=dropout,
    )
    return out_THK[None], None


AttentionInterface.register(ATTENTION_NAME, _attention)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)


def build_language_model(
    config: PretrainedConfig, lora: LoraSection | None = None, *, kernels: bool = True
) -> PreTrainedModel:
    """An uninitialised language model of `config`, with adapters where `lora` asks for them.

    Args:
        config: transformers' configuration.
        lora: adapters of its linear layers.
        kernels: whether its norms, rotations and activations are the fused ones.

    Raises:
        ValueError: when the architecture is neither a Llama nor a T5, or the adapters do not fit.
    """
    if config.model_type == "llama":
        model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION_NAME)
        if config.tie_word_embeddings:
            model.lm_head.weight = model.model.embed_tokens.weight
    elif config.model_type == "t5":
        model = AutoModelForSeq2SeqLM.from_config(config)
        tie_as_configured(model)
    else:
        raise ValueError(
            f"the language model is of type {config.model_type!r}; supported: 'llama' "
            "(Vicuna and other models of the Llama architecture) and 't5' (Flan-T5)"
        )
    if kernels:
        use_kernels(model)
    if lora is not None:
        add_adapters(model, lora)
    return model


def answer_hidden(
    language_model: PreTrainedModel, embeddings_TD: Tensor, batch: Batch, *, recompute: bool = False
) -> Tensor:
    """The states [A, D] that predict each answer token, from the batch's embedded rows.

    Args:
        language_model: of `build_language_model`.
        embeddings_TD: token embeddings and visual tokens of the packed rows.
        batch: where everything lies in them.
        recompute: gradient checkpointing of a T5; a Llama's is `set_recompute`'s.
    """
    if language_model.config.is_encoder_decoder:
        return packed_answers(
            language_model,
            embeddings_TD.index_select(0, batch.prompt_rows_P),
            PackedRows(batch.cu_prompts_B1, batch.max_prompt),
            batch.answer_ids_A,
            PackedRows(batch.cu_answers_B1, batch.max_answer),
            recompute=recompute,
        )
    hidden_TD = packed_hidden(
        language_model, embeddings_TD, batch.positions_T, batch.cu_tokens_B1, batch.max_tokens
    )
    return hidden_TD.index_select(0, batch.answer_rows_A)


def packed_hidden(
    language_model: PreTrainedModel,
    embeddings_TD: Tensor,
    positions_T: Tensor,
    cu_tokens_B1: Tensor,
    max_tokens: int,
) -> Tensor:
    """Last hidden states [T, D] of a Llama's packed rows; each sample sees itself alone."""
    out = language_model.model(
        inputs_embeds=embeddings_TD[None],
        # transformers takes a mask of four dimensions as it is. Without one it looks for packed
        # sequences itself, and transformers 5 waits for the device to say whether there are any.
        attention_mask=embeddings_TD.new_empty(1, 1, 1, 0),
        position_ids=positions_T[None],
        use_cache=False,
        cu_seqlens=cu_tokens_B1,
        max_seqlen=max_tokens,
    )
    hidden: Tensor = out.last_hidden_state[0]
    return hidden


def answer_losses(
    language_model: PreTrainedModel, hidden_AD: Tensor, answer_ids_A: Tensor
) -> Tensor:
    """Cross-entropy in fp32 of each answer token [A]."""
    logits_AV = answer_logits(language_model, hidden_AD)
    return nn.functional.cross_entropy(logits_AV, answer_ids_A, reduction="none")


def answer_logits(language_model: PreTrainedModel, hidden_AD: Tensor) -> Tensor:
    """Logits [A, V] in fp32; there are none for other rows than those that predict an answer."""
    logits_AV: Tensor = language_model.lm_head(hidden_AD)
    return logits_AV.to(torch.float32)


def set_recompute(language_model: PreTrainedModel, recompute: bool) -> None:
    """Turns transformers' gradient checkpointing of a Llama's layers on or off.

    Its layers recompute in training mode only. A frozen language model is in evaluation mode, so
    the layers themselves are set to training mode here, and nothing inside them is (a layer has no
    dropout of its own).
    """
    if language_model.config.is_encoder_decoder:
        return  # its blocks are walked by our own code
    # Late versions of transformers 5 call it activation checkpointing, and warn of the older name.
    model: Any = language_model
    renamed = hasattr(model, "activation_checkpointing_enable")
    name = "activation_checkpointing" if renamed else "gradient_checkpointing"
    if not recompute:
        getattr(model, f"{name}_disable")()
        return
    getattr(model, f"{name}_enable")({"use_reentrant": False})
    for module in language_model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True


def restore_frequencies(language_model: PreTrainedModel) -> None:
    """A Llama's rotary frequencies in fp32, computed anew.

    They are no parameters and follow no precision: rounded to bf16 they are off by up to 0.4 %,
    which at position 400 turns a query by more than half a radian. Moving a whole model to bf16,
    as DeepSpeed does, rounds them.
    """
    for module in language_model.modules():
        if any(name.endswith("inv_freq") for name, _ in module.named_buffers(recurse=False)):
            device = next(module.buffers(recurse=False)).device
            fresh: Any = type(module)(config=module.config).to(device)
            for name, values in fresh.named_buffers(recurse=False):
                setattr(module, name, values)
