"""The proof of an export: transformers' own classes open it and predict what our model predicts.

A fixed batch (a drawn picture, a few instructions and answers) goes through both. Tokens must be
equal, and the logits of the answer positions equal up to rounding. Both models run in fp32 on the
CPU, one after the other, so that one copy is in memory at a time.

Shapes: A answer tokens, V vocabulary.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from transformers import (
    Blip2ForConditionalGeneration,
    Blip2Processor,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
)

from ibtrain.data.collate import Sample, collate
from ibtrain.data.images import open_pixels
from ibtrain.data.tokenization import InstructionTokenizer
from ibtrain.model.opening import FoundModel, build

TOLERANCE = 1e-4
"""Largest difference of a logit, relative to the largest logit, with weights kept as they are."""
TOLERANCE_ROUNDED = 5e-2
"""The same where the export rounds weights to another dtype."""
PIXEL_TOLERANCE = 0.25
"""Of normalised pixels; a processor that resizes tensors, not images, differs by about 0.05."""

_PAIRS = (
    ("Question: What is in the picture? Short answer:", "a red circle"),
    ("A short image description:", "two shapes on a blue background"),
    ("Describe the picture in detail.", "There is a yellow square at the bottom right."),
)


class ExportError(RuntimeError):
    """An export that does not do what the model does; it is not kept."""


@dataclass(frozen=True)
class _Theirs:
    """What transformers makes of the batch: logits [A, V]."""

    logits: Tensor
    pixel_error: float


def prove(found: FoundModel, directory: Path, *, rounded: bool) -> dict[str, Any]:
    """Compares the export in `directory` with the model it was made of.

    Args:
        found: the model.
        directory: a whole export, in InstructBLIP format, or BLIP-2 format where the Q-Former
            reads no instruction.
        rounded: whether weights were rounded to another dtype.

    Returns:
        The figures: largest difference of a logit, the largest logit, answer tokens compared,
        largest difference of a pixel between their image processor and ours.

    Raises:
        ExportError: when tokens, pixels or logits differ.
    """
    image = _drawn_picture()
    ours_AV = _our_logits(found, image)
    theirs = _their_logits(found, directory, image)
    error = (ours_AV - theirs.logits).abs().max().item()
    largest = ours_AV.abs().max().item()
    proof = {
        "max_abs_logit_error": error,
        "max_abs_logit": largest,
        "answer_tokens": ours_AV.shape[0],
        "max_abs_pixel_error": theirs.pixel_error,
        "tokens_equal": True,
    }
    limit = (TOLERANCE_ROUNDED if rounded else TOLERANCE) * max(1.0, largest)
    if not error <= limit:  # not-a-number fails as well
        raise ExportError(
            f"the export opens, but its logits differ from the model's by {error:.3g} (largest "
            f"logit {largest:.3g}, allowed {limit:.3g}); it was not kept"
        )
    return proof


def _drawn_picture() -> Image.Image:
    """A picture with edges and slopes, the same everywhere, and not of the model's size."""
    image = Image.linear_gradient("L").resize((120, 90))
    image = Image.merge("RGB", (image, image.rotate(180), Image.new("L", image.size, 150)))
    draw = ImageDraw.Draw(image)
    draw.ellipse((12, 10, 58, 56), fill=(220, 40, 40))
    draw.rectangle((70, 44, 108, 80), fill=(240, 220, 40))
    return image


def _without_limits(found: FoundModel) -> InstructionTokenizer:
    """Its tokenizers without the recipe's limits, which transformers' processor does not know."""
    return InstructionTokenizer(found.tokenizer.language, found.tokenizer.qformer)


def _samples(found: FoundModel, image: Image.Image) -> list[Sample]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    size = found.config.vision_config.image_size
    pixels_1CHW = open_pixels(buffer.getvalue(), size, "resize", Random(0))[None]
    return [
        Sample(pixels_1CHW, instruction, answer, dataset="proof", id=str(number))
        for number, (instruction, answer) in enumerate(_PAIRS)
    ]


@torch.inference_mode()
def _our_logits(found: FoundModel, image: Image.Image) -> Tensor:
    """Logits [A, V] of the batch, packed."""
    batch = collate(
        _samples(found, image),
        _without_limits(found),
        query_tokens=found.config.num_query_tokens,
        image_size=found.config.vision_config.image_size,
    )
    return build(found).model.logits(batch)


@torch.inference_mode()
def _their_logits(found: FoundModel, directory: Path, image: Image.Image) -> _Theirs:
    """The same from transformers' classes, one row at a time."""
    classes = (
        (InstructBlipForConditionalGeneration, InstructBlipProcessor)
        if found.instruction_aware
        else (Blip2ForConditionalGeneration, Blip2Processor)
    )
    model = classes[0].from_pretrained(directory, dtype=torch.float32, local_files_only=True)
    model.eval()
    processor = classes[1].from_pretrained(directory, local_files_only=True)
    logits, pixel_error = [], 0.0
    for sample in _samples(found, image):
        inputs = processor(images=image, text=sample.instruction, return_tensors="pt")
        _compare_tokens(found, sample.instruction, inputs)
        theirs_1CHW = inputs["pixel_values"]
        if theirs_1CHW.shape != sample.pixels_ICHW.shape:
            raise ExportError(
                f"the exported processor makes pixels of shape {tuple(theirs_1CHW.shape)}, the "
                f"model takes {tuple(sample.pixels_ICHW.shape)}; it was not kept"
            )
        difference = (theirs_1CHW - sample.pixels_ICHW).abs().max().item()
        pixel_error = max(pixel_error, difference)
        inputs["pixel_values"] = sample.pixels_ICHW
        answer = torch.tensor([found.tokenizer.answer(sample.answer)])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], answer[:, :-1]], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        logits.append(model(**inputs).logits[0, -answer.shape[1] :])
    if not pixel_error <= PIXEL_TOLERANCE:
        raise ExportError(
            f"the exported processor's pixels differ from ours by {pixel_error:.3g}; is the base's "
            "image processor a BLIP one (bicubic squash, CLIP mean and deviation)? It was not kept"
        )
    return _Theirs(torch.cat(logits), pixel_error)


def _compare_tokens(found: FoundModel, instruction: str, inputs: Any) -> None:
    queries = found.config.num_query_tokens
    ours = _without_limits(found).instruction(instruction)
    pairs = {"language model": (inputs["input_ids"][0, queries:].tolist(), list(ours.language))}
    if found.instruction_aware:
        pairs["Q-Former"] = (inputs["qformer_input_ids"][0].tolist(), list(ours.qformer))
    for part, (theirs, own) in pairs.items():
        if theirs != own:
            raise ExportError(
                f"the exported processor gives the {part} other tokens for {instruction!r}: "
                f"{theirs}, training gave {own}; it was not kept"
            )
