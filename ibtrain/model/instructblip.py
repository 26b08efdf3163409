"""InstructBLIP: vision tower -> Q-Former under the instruction -> projection -> language model.

Parameter names equal transformers' `InstructBlipForConditionalGeneration`; adapters are named as
peft saves them (lora.py).

Shapes: I images, Q query tokens, N image tokens, T packed language-model tokens, V visual rows,
A answer tokens, D widths.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from transformers import InstructBlipConfig

from ibtrain.batch import Batch
from ibtrain.config import LoraSection
from ibtrain.model.language import (
    answer_hidden,
    answer_logits,
    answer_losses,
    build_language_model,
    set_recompute,
)
from ibtrain.model.lora import is_adapter, stored_name
from ibtrain.model.qformer import QFormer
from ibtrain.model.vision import VisionTower

Part = Literal["vision", "qformer", "projection", "language"]
PARTS: tuple[Part, ...] = get_args(Part)


def part_of(name: str) -> Part:
    """The trainable part that a parameter belongs to.

    The vision tower's final LayerNorm counts with the Q-Former: it is trained where the encoder is
    frozen (LAVIS `blip2.py` freezes `visual_encoder` and leaves `ln_vision` trainable).
    """
    if name.startswith(("qformer.", "vision_model.post_layernorm.")) or name == "query_tokens":
        return "qformer"
    if name.startswith("vision_model."):
        return "vision"
    if name.startswith("language_projection."):
        return "projection"
    if name.startswith("language_model."):
        return "language"
    raise ValueError(f"parameter {name!r} belongs to no part of an InstructBLIP model")


class InstructBlip(nn.Module):
    """The whole model over packed batches.

    Args:
        config: transformers' configuration of the three parts.
        instruction_aware: whether the Q-Former reads the instruction; False is the paper's
            ablation and has no text weights in the Q-Former.
        lora: adapters of the language model.
        recompute: gradient checkpointing of the language model and of a trained vision tower.
        kernels: whether the language model's norms, rotations and activations are the fused ones.
    """

    def __init__(
        self,
        config: InstructBlipConfig,
        instruction_aware: bool = True,
        lora: LoraSection | None = None,
        recompute: bool = False,
        kernels: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        self.recompute = recompute
        self.instruction_aware = instruction_aware
        config.qformer_config.encoder_hidden_size = config.vision_config.hidden_size
        self.query_tokens = nn.Parameter(
            torch.empty(1, config.num_query_tokens, config.qformer_config.hidden_size)
        )
        self.vision_model = VisionTower(config.vision_config)
        self.qformer = QFormer(config.qformer_config, instruction_aware)
        self.language_projection = nn.Linear(
            config.qformer_config.hidden_size, config.text_config.hidden_size
        )
        self.language_model = build_language_model(config.text_config, lora, kernels=kernels)

    def visual_tokens(
        self, pixels_ICHW: Tensor, text_ids_L: Tensor, cu_text_I1: Tensor, max_text: int
    ) -> Tensor:
        """Images and their packed instructions -> visual tokens [I, Q, D_language]."""
        image_IND = self.vision_model(pixels_ICHW, recompute=self.recompute)
        query_IQD = self.qformer(self.query_tokens[0], image_IND, text_ids_L, cu_text_I1, max_text)
        tokens: Tensor = self.language_projection(query_IQD)
        return tokens

    def embed(self, batch: Batch) -> Tensor:
        """The language model's packed input rows [T, D]: token embeddings and visual tokens."""
        visual_IQD = self.visual_tokens(
            batch.pixels_ICHW, batch.text_ids_L, batch.cu_text_I1, batch.max_text
        )
        embeddings_TD: Tensor = self.language_model.get_input_embeddings()(batch.token_ids_T)
        # A dummy image has no rows: every rank runs every module, and its gradient is exactly zero.
        visual_VD = visual_IQD.flatten(0, 1)[: batch.visual_rows_V.numel()]
        return embeddings_TD.index_copy(0, batch.visual_rows_V, visual_VD.to(embeddings_TD.dtype))

    def hidden(self, batch: Batch) -> Tensor:
        """The language model's last hidden states [A, D] that predict the answer tokens."""
        return answer_hidden(
            self.language_model, self.embed(batch), batch, recompute=self.recompute
        )

    def forward(self, batch: Batch) -> Tensor:
        """Cross-entropy of every answer token [A], fp32; sum and divide as the caller needs."""
        return answer_losses(self.language_model, self.hidden(batch), batch.answer_ids_A)

    def logits(self, batch: Batch) -> Tensor:
        """Logits [A, vocabulary] that predict the answer tokens, fp32."""
        return answer_logits(self.language_model, self.hidden(batch))

    def train(self, mode: bool = True) -> "InstructBlip":
        """Training mode, in which frozen parts stay in evaluation mode (no dropout there)."""
        super().train(mode)
        for module in (self.vision_model, self.qformer, self.language_model):
            if not any(parameter.requires_grad for parameter in module.parameters()):
                module.eval()
        set_recompute(self.language_model, self.recompute and mode)
        return self

    def weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters under the names that they are stored under, in a fixed order."""
        return ((stored_name(name), parameter) for name, parameter in self.named_parameters())

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of `weights` that are trained."""
        return ((name, parameter) for name, parameter in self.weights() if parameter.requires_grad)


def set_trainable(model: InstructBlip, train_parts: Mapping[str, str]) -> None:
    """Marks the parameters of each part as trained ("full"), frozen ("frozen"), or frozen but for
    its adapters ("lora").
    """
    for name, parameter in model.weights():
        how = train_parts[part_of(name)]
        parameter.requires_grad_(how == "full" or (how == "lora" and is_adapter(name)))
