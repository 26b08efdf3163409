"""The Q-Former, packed: 32 learned queries read an image under an instruction.

Queries and instruction tokens share the self-attention and have a feed-forward each; every second
layer (from layer 0) the queries alone look at the image tokens. The instruction is never padded:
its tokens lie end to end, image after image.

Rows are held "queries first": the I*Q query rows of all images, then the L instruction rows, so the
two kinds are slices; only self-attention needs an image's rows side by side, and reorders for it.

Parameter names equal transformers' `InstructBlipQFormerModel`.

Shapes: I images, Q queries, L packed instruction tokens, R = I*Q + L rows, N image tokens,
D width, H heads, K head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import InstructBlipQFormerConfig
from transformers.activations import ACT2FN

from ibtrain.kernels import varlen_attention


@dataclass(frozen=True)
class RowLayout:
    """Where the rows of each image lie.

    `interleave_R[j]` is the queries-first row that stands at row j when every image's queries are
    followed by its instruction; `restore_R` is its inverse. `text_positions_L` counts within each
    instruction. `query_rows` is I*Q.
    """

    interleave_R: Tensor
    restore_R: Tensor
    text_positions_L: Tensor
    cu_rows: Tensor
    max_rows: int
    query_rows: int
    cu_queries: Tensor
    queries: int

    @classmethod
    def of(
        cls, images: int, queries: int, cu_text_I1: Tensor, max_text: int, text_rows: int
    ) -> "RowLayout":
        """The layout for `images` images of `queries` queries and packed instructions."""
        device = cu_text_I1.device
        steps_I1 = torch.arange(images + 1, device=device)
        lengths_I = cu_text_I1.diff().long()
        image_L = torch.repeat_interleave(steps_I1[:-1], lengths_I, output_size=text_rows)
        token_L = torch.arange(image_L.numel(), device=device)
        # Row of instruction token l: after the queries of its own image and of those before.
        row_of_text_L = token_L + (image_L + 1) * queries
        query_index = torch.arange(images * queries, device=device)
        row_of_query = query_index + cu_text_I1.long()[query_index // queries]
        restore_R = torch.cat([row_of_query, row_of_text_L])
        return cls(
            interleave_R=torch.argsort(restore_R),
            restore_R=restore_R,
            text_positions_L=token_L - cu_text_I1.long()[image_L],
            cu_rows=(cu_text_I1 + steps_I1 * queries).to(torch.int32),
            max_rows=queries + max_text,
            query_rows=images * queries,
            cu_queries=(steps_I1 * queries).to(torch.int32),
            queries=queries,
        )


class MultiHeadAttention(nn.Module):
    """Projections of one attention; the arithmetic itself is `varlen_attention`."""

    def __init__(self, config: InstructBlipQFormerConfig, key_width: int) -> None:
        super().__init__()
        self.heads: int = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(key_width, config.hidden_size)
        self.value = nn.Linear(key_width, config.hidden_size)
        self.dropout_p: float = config.attention_probs_dropout_prob

    def project(self, hidden_RD: Tensor, source_SD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of `hidden_RD`, keys and values of `source_SD`, split into heads [., H, K]."""
        return (
            self.query(hidden_RD).unflatten(-1, (self.heads, -1)),
            self.key(source_SD).unflatten(-1, (self.heads, -1)),
            self.value(source_SD).unflatten(-1, (self.heads, -1)),
        )


class ResidualOutput(nn.Module):
    """Linear, dropout, residual, LayerNorm: the end of every post-norm sub-layer."""

    def __init__(self, config: InstructBlipQFormerConfig, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout_p: float = config.hidden_dropout_prob

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        """LayerNorm(dropout(dense(hidden)) + residual)."""
        hidden = functional.dropout(self.dense(hidden), self.dropout_p, self.training)
        normed: Tensor = self.LayerNorm(hidden + residual)
        return normed


class SelfAttention(nn.Module):
    """Queries and instruction of one image see each other, in both directions."""

    def __init__(self, config: InstructBlipQFormerConfig) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(config, config.hidden_size)
        self.output = ResidualOutput(config, config.hidden_size)

    def forward(self, hidden_RD: Tensor, layout: RowLayout) -> Tensor:
        """[R, D] queries first -> [R, D] queries first."""
        query, key, value = (
            rows.index_select(0, layout.interleave_R)
            for rows in self.attention.project(hidden_RD, hidden_RD)
        )
        out_RHK = varlen_attention(
            query,
            key,
            value,
            layout.cu_rows,
            layout.cu_rows,
            layout.max_rows,
            layout.max_rows,
            dropout_p=self.attention.dropout_p if self.training else 0.0,
        )
        restored_RD = out_RHK.flatten(1).index_select(0, layout.restore_R)
        out: Tensor = self.output(restored_RD, hidden_RD)
        return out


class CrossAttention(nn.Module):
    """The query rows look at their image."""

    def __init__(self, config: InstructBlipQFormerConfig) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(config, config.encoder_hidden_size)
        self.output = ResidualOutput(config, config.hidden_size)

    def forward(self, query_RD: Tensor, image_IND: Tensor, layout: RowLayout) -> Tensor:
        """[I*Q, D] with image tokens [I, N, D_vision] -> [I*Q, D]."""
        images, tokens, _ = image_IND.shape
        query, key, value = self.attention.project(query_RD, image_IND.flatten(0, 1))
        cu_images = torch.arange(
            0, (images + 1) * tokens, tokens, dtype=torch.int32, device=image_IND.device
        )
        out_RHK = varlen_attention(
            query,
            key,
            value,
            layout.cu_queries,
            cu_images,
            layout.queries,
            tokens,
            dropout_p=self.attention.dropout_p if self.training else 0.0,
        )
        out: Tensor = self.output(out_RHK.flatten(1), query_RD)
        return out


class Intermediate(nn.Module):
    """First half of a feed-forward."""

    def __init__(self, config: InstructBlipQFormerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden: Tensor) -> Tensor:
        """[., D] -> [., D_intermediate]."""
        out: Tensor = self.activation(self.dense(hidden))
        return out


class QFormerLayer(nn.Module):
    """Self-attention over all rows, cross-attention from the queries, two feed-forwards."""

    def __init__(
        self, config: InstructBlipQFormerConfig, index: int, instruction_aware: bool
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.instruction_aware = instruction_aware
        self.has_cross_attention = index % config.cross_attention_frequency == 0
        if self.has_cross_attention:
            self.crossattention = CrossAttention(config)
        if instruction_aware:
            self.intermediate = Intermediate(config)
            self.output = ResidualOutput(config, config.intermediate_size)
        self.intermediate_query = Intermediate(config)
        self.output_query = ResidualOutput(config, config.intermediate_size)

    def forward(self, hidden_RD: Tensor, image_IND: Tensor, layout: RowLayout) -> Tensor:
        """[R, D] -> [R, D]."""
        hidden_RD = self.attention(hidden_RD, layout)
        query_RD: Tensor = hidden_RD[: layout.query_rows]
        text_LD = hidden_RD[layout.query_rows :]
        if self.has_cross_attention:
            query_RD = self.crossattention(query_RD, image_IND, layout)
        query_RD = self.output_query(self.intermediate_query(query_RD), query_RD)
        if not self.instruction_aware:
            return query_RD
        return torch.cat([query_RD, self.output(self.intermediate(text_LD), text_LD)])


class QFormerEmbeddings(nn.Module):
    """Words and positions of the instruction (queries get neither), one LayerNorm for all."""

    def __init__(self, config: InstructBlipQFormerConfig, instruction_aware: bool) -> None:
        super().__init__()
        self.instruction_aware = instruction_aware
        if instruction_aware:
            self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
            self.position_embeddings = nn.Embedding(
                config.max_position_embeddings, config.hidden_size
            )
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout_p: float = config.hidden_dropout_prob

    def forward(self, query_RD: Tensor, text_ids_L: Tensor, positions_L: Tensor) -> Tensor:
        """Query rows [I*Q, D] and packed token ids [L] -> [R, D], queries first."""
        rows_RD = query_RD
        if self.instruction_aware:
            text_LD = self.word_embeddings(text_ids_L) + self.position_embeddings(positions_L)
            rows_RD = torch.cat([query_RD, text_LD.to(query_RD.dtype)])
        rows_RD = rows_RD.to(self.layernorm.weight.dtype)
        return functional.dropout(self.layernorm(rows_RD), self.dropout_p, self.training)


class QFormerEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: InstructBlipQFormerConfig, instruction_aware: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            QFormerLayer(config, index, instruction_aware)
            for index in range(config.num_hidden_layers)
        )

    def forward(self, hidden_RD: Tensor, image_IND: Tensor, layout: RowLayout) -> Tensor:
        """[R, D] -> [R, D]."""
        for layer in self.layer:
            hidden_RD = layer(hidden_RD, image_IND, layout)
        return hidden_RD


class QFormer(nn.Module):
    """Image tokens and instructions to Q rows per image.

    With `instruction_aware=False` (the paper's ablation, BLIP-2's own form) the text embeddings and
    text feed-forwards do not exist and instructions are ignored.
    """

    def __init__(self, config: InstructBlipQFormerConfig, instruction_aware: bool = True) -> None:
        super().__init__()
        self.config = config
        self.instruction_aware = instruction_aware
        self.embeddings = QFormerEmbeddings(config, instruction_aware)
        self.encoder = QFormerEncoder(config, instruction_aware)

    def forward(
        self,
        query_QD: Tensor,
        image_IND: Tensor,
        text_ids_L: Tensor,
        cu_text_I1: Tensor,
        max_text: int,
    ) -> Tensor:
        """Returns the query rows [I, Q, D] of the last layer; instruction rows are dropped.

        ValueError when an instruction is longer than the position embeddings.
        """
        images, queries = image_IND.shape[0], query_QD.shape[0]
        if not self.instruction_aware:
            text_ids_L = text_ids_L[:0]
            cu_text_I1 = torch.zeros_like(cu_text_I1)
            max_text = 0
        if max_text > self.config.max_position_embeddings:
            raise ValueError(
                f"an instruction has {max_text} Q-Former tokens, the position embeddings reach "
                f"{self.config.max_position_embeddings}: lower data.max_instruction_tokens"
            )
        layout = RowLayout.of(images, queries, cu_text_I1, max_text, text_ids_L.numel())
        hidden_RD = self.embeddings(query_QD.repeat(images, 1), text_ids_L, layout.text_positions_L)
        hidden_RD = self.encoder(hidden_RD, image_IND, layout)
        query_IQD: Tensor = hidden_RD[: layout.query_rows].unflatten(0, (images, queries))
        return query_IQD
