"""transformers' T5, unpatched, over packed rows.

T5's attention has no way in for packed rows, so its modules are walked here: the layers, their
weights and their dropout are transformers' own, only the attention between their projections is
`varlen_attention`, with the relative bias of each sample counted from the sample's own beginning.
The same modules generate through transformers' own forward.

Shapes: P packed encoder rows, A packed decoder rows (one per answer token), T either of them,
B samples, D width, H heads, K head width, R the distance beyond which the bias stays the same.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ibtrain.kernels import varlen_attention
from ibtrain.model.fused import add_and_norm
from ibtrain.model.recompute import run_layer


@dataclass(frozen=True)
class PackedRows:
    """Where the sequences of a packed row begin: cumulative lengths [B+1], and the longest."""

    cumulative: Tensor
    longest: int


@dataclass(frozen=True)
class Encoded:
    """What a decoder looks at: the encoder's output [P, D]."""

    hidden_PD: Tensor
    rows: PackedRows


def ties_embeddings(config: PretrainedConfig) -> bool:
    """Whether output and input embeddings of a T5 are one tensor (T5 1.0), or two (Flan-T5).

    transformers 5 calls every T5 tied and keeps what its configuration said under another name.
    """
    scaled = getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)
    return bool(scaled)


def tie_as_configured(model: PreTrainedModel) -> None:
    """Both stacks read the shared embedding; the output embedding is it, or one of its own.

    transformers ties while it initialises weights, which is not done here, and transformers 5 ties
    what Flan-T5 has apart.
    """
    model.encoder.embed_tokens = model.shared
    model.decoder.embed_tokens = model.shared
    if ties_embeddings(model.config):
        model.lm_head.weight = model.shared.weight
    elif model.lm_head.weight is model.shared.weight:
        width, vocabulary = model.lm_head.in_features, model.lm_head.out_features
        model.lm_head = nn.Linear(width, vocabulary, bias=False)


def packed_answers(
    model: PreTrainedModel,
    prompt_PD: Tensor,
    prompt_rows: PackedRows,
    answer_ids_A: Tensor,
    answer_rows: PackedRows,
    *,
    recompute: bool,
) -> Tensor:
    """Hidden states [A, D] that predict each answer token, ready for the output embedding.

    Args:
        model: a `T5ForConditionalGeneration`.
        prompt_PD: the encoder's input rows, visual tokens and instruction of each sample.
        prompt_rows: where each sample's prompt begins.
        answer_ids_A: the answer tokens, end tokens included.
        answer_rows: where each sample's answer begins.
        recompute: gradient checkpointing, block by block.
    """
    encoded_PD = packed_stack(model.encoder, prompt_PD, prompt_rows, None, recompute)
    embeddings_AD = model.shared(decoder_inputs(model.config, answer_ids_A, answer_rows))
    encoded = Encoded(encoded_PD, prompt_rows)
    hidden_AD = packed_stack(model.decoder, embeddings_AD, answer_rows, encoded, recompute)
    if ties_embeddings(model.config):
        hidden_AD = hidden_AD * model.config.d_model**-0.5
    return hidden_AD


def start_token(config: PretrainedConfig) -> int:
    """What a T5's decoder begins with: the token for it, or the padding token as T5 was trained."""
    named: int | None = getattr(config, "decoder_start_token_id", None)
    start: int = config.pad_token_id if named is None else named
    return start


def decoder_inputs(config: PretrainedConfig, answer_ids_A: Tensor, rows: PackedRows) -> Tensor:
    """Each answer shifted by one, begun by the start token [A]."""
    shifted_A = answer_ids_A.roll(1)
    shifted_A[rows.cumulative[:-1].long()] = start_token(config)
    return shifted_A


def packed_stack(
    stack: PreTrainedModel,
    hidden_TD: Tensor,
    rows: PackedRows,
    encoded: Encoded | None,
    recompute: bool,
) -> Tensor:
    """An encoder, or with `encoded` a decoder, over packed rows [T, D] -> [T, D]."""
    bias_HR = _bias_by_distance(stack.block[0].layer[0].SelfAttention, hidden_TD.device)
    hidden_TD = stack.dropout(hidden_TD)
    for block in stack.block:
        walk = _Block(block, rows, bias_HR, encoded)
        hidden_TD = run_layer(walk, hidden_TD, recompute=recompute)
    out_TD: Tensor = stack.dropout(stack.final_layer_norm(hidden_TD))
    return out_TD


def _bias_by_distance(attention: Any, device: torch.device) -> Tensor:
    """The relative bias of all distances from -R to R, [H, 2R+1]; the first block's, for all."""
    reach = attention.relative_attention_max_distance
    buckets = attention._relative_position_bucket(
        torch.arange(-reach, reach + 1, device=device),
        bidirectional=not attention.is_decoder,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=reach,
    )
    # Called as a module: under ZeRO-3 that is what brings its weight together.
    bias_RH: Tensor = attention.relative_attention_bias(buckets)
    return bias_RH.t()


@dataclass(frozen=True)
class _Block:
    """One block: self-attention, in a decoder cross-attention, feed-forward."""

    block: Any
    rows: PackedRows
    bias_HR: Tensor
    encoded: Encoded | None

    def __call__(self, hidden_TD: Tensor) -> Tensor:
        layer, feed_forward = self.block.layer[0], self.block.layer[-1]
        normed_TD = layer.layer_norm(hidden_TD)
        attended_TD = _attend(
            *(layer.SelfAttention, normed_TD, normed_TD, self.rows, self.rows),
            self.bias_HR,
            causal=self.encoded is not None,
        )
        attended_TD = layer.dropout(attended_TD)
        if self.encoded is not None:
            layer = self.block.layer[1]
            normed_TD, hidden_TD = add_and_norm(layer.layer_norm, attended_TD, hidden_TD)
            attended_TD = _attend(
                *(layer.EncDecAttention, normed_TD, self.encoded.hidden_PD),
                *(self.rows, self.encoded.rows),
                None,
                causal=False,
            )
            attended_TD = layer.dropout(attended_TD)
        normed_TD, hidden_TD = add_and_norm(feed_forward.layer_norm, attended_TD, hidden_TD)
        out_TD: Tensor = hidden_TD + feed_forward.dropout(feed_forward.DenseReluDense(normed_TD))
        return out_TD


def _attend(
    attention: Any,
    query_TD: Tensor,
    source_SD: Tensor,
    query_rows: PackedRows,
    source_rows: PackedRows,
    bias_HR: Tensor | None,
    *,
    causal: bool,
) -> Tensor:
    """What `T5Attention` does between its projections, packed; T5 does not scale its scores."""
    heads = (attention.n_heads, attention.key_value_proj_dim)
    out_THK = varlen_attention(
        attention.q(query_TD).unflatten(-1, heads),
        attention.k(source_SD).unflatten(-1, heads),
        attention.v(source_SD).unflatten(-1, heads),
        query_rows.cumulative,
        source_rows.cumulative,
        query_rows.longest,
        source_rows.longest,
        causal=causal,
        scale=1.0,
        rel_bias=bias_HR,
        dropout_p=attention.dropout if attention.training else 0.0,
    )
    projected_TD: Tensor = attention.o(out_THK.flatten(1))
    return projected_TD
