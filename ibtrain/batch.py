"""The packed micro-batch: what collating makes and the model takes. No padding anywhere.

Shapes: B samples, I images, Q query tokens, L packed instruction tokens of the Q-Former,
T packed tokens of the language model, V visual rows among them (Q per real image), P prompt rows
among them (all that come before an answer), A answer tokens.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One micro-batch. Row b of the language model is [visual][instruction][answer, end token].

    A decoder-only model reads the row as it is. An encoder-decoder model reads the prompt, which is
    [visual][instruction], in its encoder and the answer in its decoder.

    A batch without any image carries one dummy image (so that every rank runs every sharded module)
    and no visual rows; the model multiplies what comes of it by zero.
    """

    pixels_ICHW: Tensor
    """fp32, CLIP-normalised; at least one image."""
    text_ids_L: Tensor
    """Q-Former tokens of every image's instruction, end to end."""
    cu_text_I1: Tensor
    """int32 [I+1], where each image's instruction begins in `text_ids_L`."""
    max_text: int
    token_ids_T: Tensor
    """Language-model tokens; visual rows hold a place-holder id that is overwritten."""
    positions_T: Tensor
    """Position of each token within its sample, visual rows counted."""
    cu_tokens_B1: Tensor
    """int32 [B+1], where each sample begins."""
    max_tokens: int
    visual_rows_V: Tensor
    """Rows of the language model that take the visual tokens, in image order."""
    answer_rows_A: Tensor
    """Rows whose output predicts an answer token (one before the token itself)."""
    answer_ids_A: Tensor
    """The answer tokens and end tokens to be predicted."""
    answer_sample_A: Tensor
    """For each answer token the sample b it belongs to."""
    cu_answers_B1: Tensor
    """int32 [B+1], where each sample's answer begins in `answer_ids_A`."""
    max_answer: int
    prompt_rows_P: Tensor
    """Rows of the language model that come before an answer, visual rows included."""
    cu_prompts_B1: Tensor
    """int32 [B+1], where each sample's prompt begins in `prompt_rows_P`."""
    max_prompt: int
    datasets: tuple[str, ...]
    """Dataset name of each sample."""
    sample_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.datasets)

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, from which copying to a GPU is asynchronous."""
        pinned: dict[str, Any] = {
            field.name: value.pin_memory()
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **pinned)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with its tensors on `device` (asynchronously from pinned memory)."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)
