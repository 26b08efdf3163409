"""Many answers to one prompt at the price of their distinct tokens.

The prompt is computed once. The answers' tokens form a tree, in which answers that begin alike
share a branch; it is laid out as rows of one sequence, each of which sees the prompt, its ancestors
and itself. What a row puts out predicts the tokens below it, so one pass over the tree, or over
pieces of it, holds all that the answers' log-probabilities are made of.

Row 0 of a tree is its root: what stands before an answer's first token. In a Llama that is the
prompt's last row, in a T5 the token that its decoder begins with.

Shapes: B prompts, L padded rows of a prompt, N rows of a tree, D width, H heads, K head width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from ibtrain.model.t5 import start_token, ties_embeddings


@dataclass(frozen=True)
class TreeRows:
    """A tree of tokens, or a piece of one, for each prompt."""

    token_ids_BN: Tensor
    """The root's is not read."""
    depth_BN: Tensor
    """0 for the root."""
    sees_BNN: Tensor
    """Whether row n sees row m of its tree: its ancestors and itself."""


class PromptState:
    """Prompts as a language model has read them, ready for any number of trees.

    Args:
        language_model: a Llama or a T5 of `build_language_model`.
        rows_BLD: embedded prompts, padded on the left, each of at least one row.
        mask_BL: 1 where a row is the prompt's.
    """

    def __init__(self, language_model: PreTrainedModel, rows_BLD: Tensor, mask_BL: Tensor) -> None:
        self._read: _LlamaPrompt | _T5Prompt
        if language_model.config.is_encoder_decoder:
            self._read = _T5Prompt(language_model, rows_BLD, mask_BL)
        else:
            self._read = _LlamaPrompt(language_model, rows_BLD, mask_BL)

    def hidden(self, tree: TreeRows) -> Tensor:
        """The states [B, N, D] that predict what follows each row of the trees, ready for the
        output embedding.
        """
        return self._read.hidden(tree)


class _LlamaPrompt:
    """All rows of the prompts but the last in a key-value cache; the last is every tree's root."""

    def __init__(self, model: Any, rows_BLD: Tensor, mask_BL: Tensor) -> None:
        self.model = model.model
        self.embed = model.get_input_embeddings()
        self.root_BD = rows_BLD[:, -1]
        self.known_BL = mask_BL[:, :-1].bool()
        self.root_position_B = mask_BL.sum(-1) - 1
        self.cache = DynamicCache()
        if self.known_BL.shape[1]:
            self.model(
                inputs_embeds=rows_BLD[:, :-1],
                attention_mask=mask_BL[:, :-1],
                position_ids=(mask_BL[:, :-1].cumsum(-1) - 1).clamp_min(0),
                past_key_values=self.cache,
                use_cache=True,
            )

    def hidden(self, tree: TreeRows) -> Tensor:
        """[B, N, D]."""
        rows_BND = self.embed(tree.token_ids_BN).clone()
        rows_BND[:, 0] = self.root_BD
        batch, rows, _ = rows_BND.shape
        length = self.known_BL.shape[1]
        prompt_BNL = self.known_BL[:, None].expand(batch, rows, length)
        out = self.model(
            inputs_embeds=rows_BND,
            attention_mask=torch.cat([prompt_BNL, tree.sees_BNN], -1)[:, None],
            position_ids=self.root_position_B[:, None] + tree.depth_BN,
            past_key_values=self.cache,
            use_cache=True,
        )
        if length:
            self.cache.crop(-rows)  # which every release reads as: remove so many
        else:
            self.cache = DynamicCache()
        hidden_BND: Tensor = out.last_hidden_state
        return hidden_BND


class _T5Prompt:
    """The encoder's output, which every row of a tree looks at."""

    def __init__(self, model: Any, rows_BLD: Tensor, mask_BL: Tensor) -> None:
        self.model = model
        self.encoded_BLD = model.encoder(
            inputs_embeds=rows_BLD, attention_mask=mask_BL
        ).last_hidden_state
        self.known_B11L = mask_BL.bool()[:, None, None]

    def hidden(self, tree: TreeRows) -> Tensor:
        """[B, N, D]; the decoder's modules are transformers' own, walked here because its own
        forward counts distances by rows, not by depth.
        """
        ids_BN = tree.token_ids_BN.clone()
        ids_BN[:, 0] = start_token(self.model.config)
        stack = self.model.decoder
        hidden_BND = self.model.shared(ids_BN)
        bias_BHNN = _bias_by_depth(stack.block[0].layer[0].SelfAttention, tree)
        for block in stack.block:
            own, cross, feed_forward = block.layer
            normed_BND = own.layer_norm(hidden_BND)
            hidden_BND = hidden_BND + _attend(
                own.SelfAttention, normed_BND, normed_BND, bias_BHNN.to(normed_BND.dtype)
            )
            normed_BND = cross.layer_norm(hidden_BND)
            hidden_BND = hidden_BND + _attend(
                cross.EncDecAttention, normed_BND, self.encoded_BLD, self.known_B11L
            )
            normed_BND = feed_forward.layer_norm(hidden_BND)
            hidden_BND = hidden_BND + feed_forward.DenseReluDense(normed_BND)
        out_BND: Tensor = stack.final_layer_norm(hidden_BND)
        if ties_embeddings(self.model.config):
            out_BND = out_BND * self.model.config.d_model**-0.5
        return out_BND


def _bias_by_depth(attention: Any, tree: TreeRows) -> Tensor:
    """T5's relative bias by the distance in depth, minus infinity where a row does not see another,
    [B, H, N, N].
    """
    distance_BNN = tree.depth_BN[:, None, :] - tree.depth_BN[:, :, None]
    buckets_BNN = attention._relative_position_bucket(
        distance_BNN,
        bidirectional=False,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    bias_BHNN = attention.relative_attention_bias(buckets_BNN).permute(0, 3, 1, 2)
    masked: Tensor = bias_BHNN.masked_fill(~tree.sees_BNN[:, None], float("-inf"))
    return masked


def _attend(attention: Any, hidden_BND: Tensor, source_BSD: Tensor, mask: Tensor) -> Tensor:
    """What `T5Attention` does; T5 does not scale its scores. `mask` is added, or says what is
    seen.
    """
    heads = (attention.n_heads, attention.key_value_proj_dim)
    query, key, value = (
        projected.unflatten(-1, heads).transpose(1, 2)
        for projected in (
            attention.q(hidden_BND),
            attention.k(source_BSD),
            attention.v(source_BSD),
        )
    )
    out_BHNK = functional.scaled_dot_product_attention(query, key, value, mask, scale=1.0)
    projected_BND: Tensor = attention.o(out_BHNK.transpose(1, 2).flatten(2))
    return projected_BND
