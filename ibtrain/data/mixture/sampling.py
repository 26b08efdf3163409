"""From a record to a sample: which instruction, which answer, how the image is varied.

Every choice is by (seed, epoch, dataset, sample id) alone, and for a sample that an epoch draws
more than once by which time it is; never by rank, worker or what was read before.
"""

import re
from collections.abc import Sequence
from random import Random

import torch

from ibtrain.config import Recipe
from ibtrain.data.images import Augmentation, open_pixels
from ibtrain.data.mixture.collate import Sample
from ibtrain.data.records import Answer, Record

_READING = "_with_reading"
_SIDES = re.compile(r"\b(?:left|right)(?:most|wards?|hand|handed|side)?\b", re.IGNORECASE)
_STRENGTH: tuple[Augmentation, ...] = ("resize", "crop", "crop_flip")


def draw_sample(record: Record, recipe: Recipe, epoch: int, repeat: int = 0) -> Sample:
    """Chooses instruction, answer and augmentation.

    Args:
        record: has at least one answer.
        recipe: gives the seed, the prompts, the most augmentation and the image size.
        epoch: from 0.
        repeat: how often the epoch drew the sample before.

    Raises:
        ValueError: the record has no answer, or an image of it is damaged.
    """
    if not record.answers:
        raise ValueError(f"{record.dataset} {record.id}: no answer to train on")
    words = [recipe.seed, epoch, record.dataset, record.id]
    source = Random("/".join(map(str, [*words, repeat] if repeat else words)))
    instruction = _instruction(record, recipe.data.prompts, source)
    answer = _draw_answer(record.answers, source)
    augmentation = augmentation_for(record, instruction, answer, recipe.data.augmentation)
    # The frames of a video are cropped and mirrored alike.
    seed = source.getrandbits(64)
    size = recipe.data.image_size
    frames = [open_pixels(image, size, augmentation, Random(seed)) for image in record.images]
    return Sample(
        pixels_ICHW=torch.stack(frames) if frames else torch.zeros(0, 3, size, size),
        instruction=instruction,
        answer=answer,
        dataset=record.dataset,
        id=record.id,
    )


def augmentation_for(
    record: Record, instruction: str, answer: str, most: Augmentation
) -> Augmentation:
    """What may be done to an image without making its text wrong, at most `most`.

    Where text is read from it, nothing but resizing: a crop cuts words, a mirror turns them. Where
    the instruction or the answer names a side, no mirroring.
    """
    if record.task.endswith(_READING) or record.details.get("ocr_tokens"):
        return "resize"
    if _SIDES.search(instruction) or _SIDES.search(answer):
        return min("crop", most, key=_STRENGTH.index)
    return most


def _instruction(record: Record, prompts: str, source: Random) -> str:
    if prompts == "instructions":
        return source.choice(record.instructions)
    if prompts == "plain":
        return record.plain
    return f"[{record.task}: {record.dataset}] {record.plain}".rstrip()


def _draw_answer(answers: Sequence[Answer], source: Random) -> str:
    """One answer, by its weight (how many annotators gave it)."""
    return source.choices(answers, [answer.weight for answer in answers])[0].text
