"""transformers' language models, unpatched, over packed rows.

Attention goes in through transformers' own `AttentionInterface`: a model built here calls
`varlen_attention` when it is handed `cu_seqlens` (a packed row), and transformers' SDPA otherwise
(generation, where prompts are batched and there is a key-value cache).

Shapes: T packed tokens, B samples, D width, H heads, G key heads, K head width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from ibtrain.kernels import varlen_attention

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


def _mask(*arguments: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """No mask tensor for packed rows (they come without `attention_mask`); SDPA's own otherwise."""
    if attention_mask is None:
        return None
    mask: Tensor | None = sdpa_mask(*arguments, attention_mask=attention_mask, **kwargs)
    return mask


AttentionInterface.register(ATTENTION_NAME, _attention)
AttentionMaskInterface.register(ATTENTION_NAME, _mask)


def build_language_model(config: PretrainedConfig) -> PreTrainedModel:
    """An uninitialised language model of `config`, calling our attention.

    Raises:
        ValueError: when the architecture is not a Llama (the one packed here so far).
    """
    if config.model_type != "llama":
        raise ValueError(
            f"the language model is of type {config.model_type!r}; supported: 'llama' "
            "(Vicuna and other models of the Llama architecture)"
        )
    return AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION_NAME)


def packed_hidden(
    language_model: PreTrainedModel,
    embeddings_TD: Tensor,
    positions_T: Tensor,
    cu_tokens_B1: Tensor,
    max_tokens: int,
) -> Tensor:
    """Last hidden states [T, D] of packed rows; each sample sees itself alone, causally."""
    out = language_model.model(
        inputs_embeds=embeddings_TD[None],
        position_ids=positions_T[None],
        use_cache=False,
        cu_seqlens=cu_tokens_B1,
        max_seqlen=max_tokens,
    )
    hidden: Tensor = out.last_hidden_state[0]
    return hidden


def answer_losses(
    language_model: PreTrainedModel, hidden_TD: Tensor, answer_rows_A: Tensor, answer_ids_A: Tensor
) -> Tensor:
    """Cross-entropy in fp32 of each answer token [A]; logits exist for those rows only."""
    logits_AV = answer_logits(language_model, hidden_TD, answer_rows_A)
    return nn.functional.cross_entropy(logits_AV, answer_ids_A, reduction="none")


def answer_logits(
    language_model: PreTrainedModel, hidden_TD: Tensor, answer_rows_A: Tensor
) -> Tensor:
    """Logits [A, V] in fp32 of the rows that predict an answer token."""
    logits: Tensor = language_model.lm_head(hidden_TD.index_select(0, answer_rows_A))
    return logits.to(torch.float32)
