"""Modules of ours instead of transformers', over the same parameters: the fused kernels.

Norms, gated feed-forwards and a Llama's layers and attentions are exchanged for them one by one
(`use_kernels`); transformers itself stays as it is, names of parameters too. Away from a packed row
(generation, with its cache) an attention does what the one before it did. Where no kernel runs, as
on a CPU, every operation is the plain one, bit for bit.

Shapes: T packed tokens, D width, F width of the feed-forward, H heads, G key heads, K head width.
"""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaRMSNorm,
)
from transformers.models.t5.modeling_t5 import T5DenseGatedActDense, T5LayerNorm

from ibtrain.kernels import Activation, add_rms_norm, gated_act, rms_norm, rope, varlen_attention

# transformers' names of the activations that a kernel computes; others stay as they are.
ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
}


def use_kernels(language_model: PreTrainedModel) -> None:
    """Exchanges modules for the ones below that do their work, in the model itself."""
    config = language_model.config
    llama = config.model_type == "llama"
    activation = ACTIVATIONS.get(config.hidden_act if llama else config.dense_act_fn)
    # Inner ones first: a layer takes the modules over that it finds.
    for module in reversed(list(language_model.modules())):
        for name, child in list(module.named_children()):
            ours = _fused_module(child, activation)
            if ours is not None:
                setattr(module, name, ours)


def _fused_module(module: nn.Module, activation: Activation | None) -> nn.Module | None:
    # Exactly these: a subclass may do something else.
    if type(module) in (LlamaRMSNorm, T5LayerNorm):
        return RMSNorm(module)
    if type(module) is LlamaAttention:
        return PackedLlamaAttention(module)
    if type(module) is LlamaDecoderLayer:
        return LlamaLayer(module)
    if type(module) is LlamaMLP and activation is not None:
        return LlamaFeedForward(module, activation)
    if type(module) is T5DenseGatedActDense and activation is not None:
        return T5FeedForward(module, activation)
    return None


def _take_over(ours: nn.Module, plain: nn.Module) -> None:
    """Makes `ours` hold everything that `plain` holds: parameters, modules, settings."""
    nn.Module.__init__(ours)
    vars(ours).update(vars(plain))


class RMSNorm(nn.Module):
    """Computes what a Llama's or T5's norm does, fused."""

    weight: nn.Parameter
    variance_epsilon: float

    def __init__(self, plain: nn.Module) -> None:
        _take_over(self, plain)

    def forward(
        self, hidden: Tensor, residual: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """[..., D] normed; with `residual` their sum normed, and the sum."""
        if residual is None:
            return rms_norm(hidden, self.weight, self.variance_epsilon)
        return add_rms_norm(hidden, residual, self.weight, self.variance_epsilon)


def add_and_norm(norm: nn.Module, hidden: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """(normed, sum) of residual + hidden, by the kernel where `norm` is ours."""
    if isinstance(norm, RMSNorm):
        both: tuple[Tensor, Tensor] = norm(hidden, residual)
        return both
    total = residual + hidden
    return norm(total), total


class LlamaFeedForward(LlamaMLP):  # type: ignore[misc]
    """Computes what a Llama's feed-forward does, fused."""

    def __init__(self, plain: LlamaMLP, activation: Activation) -> None:
        _take_over(self, plain)
        self.activation = activation

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        gated = gated_act(self.gate_proj(hidden), self.up_proj(hidden), self.activation)
        out: Tensor = self.down_proj(gated)
        return out


class T5FeedForward(T5DenseGatedActDense):  # type: ignore[misc]
    """Computes what a T5's gated feed-forward does, fused."""

    def __init__(self, plain: T5DenseGatedActDense, activation: Activation) -> None:
        _take_over(self, plain)
        self.activation = activation

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        gated = gated_act(self.wi_0(hidden), self.wi_1(hidden), self.activation)
        out: Tensor = self.wo(self.dropout(gated))
        return out


class PackedLlamaAttention(LlamaAttention):  # type: ignore[misc]
    """A Llama's attention: packed rows are turned and attended where they lie."""

    def __init__(self, plain: LlamaAttention) -> None:
        _take_over(self, plain)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        *arguments: Any,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int = 0,
        **options: Any,
    ) -> Any:
        """A packed row [1, T, D] with `cu_seqlens`; without them as transformers' own."""
        if cu_seqlens is None:
            return super().forward(hidden_states, position_embeddings, *arguments, **options)
        hidden_TD = hidden_states[0]
        cos_TK, sin_TK = (table[0] for table in position_embeddings)
        heads = (-1, self.head_dim)
        query_THK, key_TGK = rope(
            self.q_proj(hidden_TD).unflatten(-1, heads),
            self.k_proj(hidden_TD).unflatten(-1, heads),
            cos_TK,
            sin_TK,
        )
        out_THK = varlen_attention(
            query_THK,
            key_TGK,
            self.v_proj(hidden_TD).unflatten(-1, heads),
            cu_seqlens,
            cu_seqlens,
            max_seqlen,
            max_seqlen,
            causal=True,
            scale=self.scaling,
            dropout_p=self.attention_dropout if self.training else 0.0,
        )
        return self.o_proj(out_THK.flatten(1))[None], None


class LlamaLayer(LlamaDecoderLayer):  # type: ignore[misc]
    """Computes what a Llama's layer does: the residual sum between its halves is the norm's."""

    def __init__(self, plain: LlamaDecoderLayer) -> None:
        _take_over(self, plain)

    def forward(self, hidden_states: Tensor, **options: Any) -> Tensor:
        """[B, L, D] -> [B, L, D]; `options` are the attention's."""
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **options)
        normed, hidden_states = add_and_norm(self.post_attention_layernorm, attended, hidden_states)
        out: Tensor = hidden_states + self.mlp(normed)
        return out
