"""The proof of an export: opened again by what it was written for, it predicts what our model
predicts.

A fixed batch (a drawn picture, a few instructions and answers) goes through both. Tokens must be
equal, and the logits of the answer positions equal up to rounding. Both run in fp32 on the CPU, one
after the other, and weights are read while a model runs, so that none is ever in memory whole
(transformers' own way of opening a directory is used where the model fits into what writing took).

Shapes: A answer tokens, V vocabulary.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
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

from ibtrain.batch import Batch
from ibtrain.data.images import open_pixels
from ibtrain.data.mixture.collate import Sample, collate
from ibtrain.model.lora import adapter_names
from ibtrain.pretrained.finding import TRIMMED
from ibtrain.pretrained.found import FoundModel
from ibtrain.pretrained.lavis import LavisSource
from ibtrain.pretrained.on_demand import open_on_demand, read_on_demand
from ibtrain.pretrained.peft import ADAPTER_DIRECTORY
from ibtrain.pretrained.tensors import SafetensorsSource, TensorSource
from ibtrain.tokenization import InstructionTokenizer

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


def prove_huggingface(
    found: FoundModel, directory: Path, *, rounded: bool, memory: int
) -> dict[str, Any]:
    """Compares an export in transformers' format with the model it was made of.

    Args:
        found: the model.
        directory: a whole export, in InstructBLIP format, or BLIP-2 format where the Q-Former
            reads no instruction; adapters kept apart lie in `adapter/`.
        rounded: whether weights were rounded to another dtype.
        memory: bytes up to which the whole model may be in memory.

    Returns:
        The figures: largest difference of a logit, the largest logit, answer tokens compared,
        largest difference of a pixel between their image processor and ours.

    Raises:
        ExportError: when tokens, pixels or logits differ.
    """
    image = _drawn_picture()
    ours_AV = _our_logits(found, image)
    theirs = _their_logits(found, directory, image, memory)
    proof = _compared(ours_AV, theirs.logits, rounded=rounded)
    return proof | {"max_abs_pixel_error": theirs.pixel_error, "tokens_equal": True}


@torch.inference_mode()
def prove_peft(found: FoundModel, directory: Path) -> dict[str, Any]:
    """Compares adapters, opened by peft on the base, with the model that has them merged.

    Raises:
        ExportError: when logits differ.
    """
    assert found.adapters is not None
    image = _drawn_picture()
    ours_AV = _our_logits(found, image)
    base = replace(found, sources=found.adapters.without, adapters=None)
    opened = open_on_demand(base)
    _put_adapters(opened.model, directory)
    theirs_AV = opened.model.logits(_batch(base, image))
    return _compared(ours_AV, theirs_AV, rounded=_has_half_precision(found))


def prove_lavis(found: FoundModel, directory: Path) -> dict[str, Any]:
    """Compares a trimmed state dict, read anew over the base, with the model.

    Raises:
        ExportError: when logits differ, or a tensor is not what was written.
    """
    encoder_decoder = found.config.text_config.model_type == "t5"
    source = LavisSource(directory / TRIMMED, encoder_decoder=encoder_decoder)
    read: Mapping[str, TensorSource] = dict.fromkeys(source.shapes(), source)
    image = _drawn_picture()
    ours_AV = _our_logits(found, image)
    theirs_AV = _our_logits(replace(found, sources={**found.sources, **read}), image)
    return _compared(ours_AV, theirs_AV, rounded=False) | {"tensors": len(read)}


def _compared(ours_AV: Tensor, theirs_AV: Tensor, *, rounded: bool) -> dict[str, Any]:
    """The figures of a comparison.

    Raises:
        ExportError: when the logits differ by more than rounding.
    """
    error = (ours_AV - theirs_AV).abs().max().item()
    largest = ours_AV.abs().max().item()
    limit = (TOLERANCE_ROUNDED if rounded else TOLERANCE) * max(1.0, largest)
    if not error <= limit:  # not-a-number fails as well
        raise ExportError(
            f"the export opens, but its logits differ from the model's by {error:.3g} (largest "
            f"logit {largest:.3g}, allowed {limit:.3g}); it was not kept"
        )
    return {
        "max_abs_logit_error": error,
        "max_abs_logit": largest,
        "answer_tokens": ours_AV.shape[0],
    }


def _has_half_precision(found: FoundModel) -> bool:
    """Whether merging adapters rounds: the adapted weights are kept in fewer bits than fp32."""
    assert found.adapters is not None
    without = found.adapters.without
    adapted = [name for name in without if adapter_names(name)[0] in found.adapters.sources]
    return any(without[name].get(name).dtype != torch.float32 for name in adapted)


def _put_adapters(model: Any, directory: Path) -> None:
    """peft opens the adapters and puts them into the language model, in place."""
    from peft import PeftModel

    PeftModel.from_pretrained(model.language_model, directory, local_files_only=True)
    model.eval()


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


def _batch(found: FoundModel, image: Image.Image) -> Batch:
    return collate(
        _samples(found, image),
        _without_limits(found),
        query_tokens=found.config.num_query_tokens,
        image_size=found.config.vision_config.image_size,
    )


@torch.inference_mode()
def _our_logits(found: FoundModel, image: Image.Image) -> Tensor:
    """Logits [A, V] of the batch, packed."""
    return open_on_demand(found).model.logits(_batch(found, image))


def _open_theirs(found: FoundModel, directory: Path, memory: int) -> tuple[Any, Any]:
    """transformers' model and processor of the directory."""
    model_class, processor_class = (
        (InstructBlipForConditionalGeneration, InstructBlipProcessor)
        if found.instruction_aware
        else (Blip2ForConditionalGeneration, Blip2Processor)
    )
    processor = processor_class.from_pretrained(directory, local_files_only=True)
    numbers = sum(prod(source.shapes()[name]) for name, source in found.sources.items())
    if 4 * numbers <= memory:
        model = model_class.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
    else:
        from accelerate import init_empty_weights

        config = model_class.config_class.from_pretrained(directory, local_files_only=True)
        with init_empty_weights(include_buffers=False):
            model = model_class(config).float()
        written = SafetensorsSource.of_directory(directory)
        read_on_demand(model, dict.fromkeys(written.shapes(), written))
    if (directory / ADAPTER_DIRECTORY).is_dir():
        _put_adapters(model, directory / ADAPTER_DIRECTORY)
    return model.eval(), processor


@torch.inference_mode()
def _their_logits(found: FoundModel, directory: Path, image: Image.Image, memory: int) -> _Theirs:
    """The same from transformers' classes, one row at a time."""
    model, processor = _open_theirs(found, directory, memory)
    encoder_decoder = found.config.text_config.model_type == "t5"
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
        if encoder_decoder:
            inputs["labels"] = answer
        else:
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
