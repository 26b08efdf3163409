"""Which instruction, answer and view of an image a draw takes."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from ibtrain.data.mixture import sampling
from ibtrain.data.mixture.sampling import augmentation_for, draw_sample
from ibtrain.data.records import Answer, Record
from tests.data.mixture.small_mixture import recipe_of
from tests.data.small_shards import picture


def example(**values: Any) -> Record:
    known = {
        "dataset": "vqav2",
        "task": "image_question_answering",
        "id": "7",
        "images": (picture((1, 2, 3)),),
        "instructions": ("What is it?", "Name it:", "Say what it is."),
        "answers": (Answer("net", 3.0), Answer("mesh", 1.0)),
        "plain": "What is it?",
    }
    return Record(**(known | values))


@pytest.mark.parametrize(
    ("values", "instruction", "answer", "expected"),
    [
        ({}, "What is it?", "a cat", "crop_flip"),
        ({}, "What is on the left?", "a cat", "crop"),
        ({}, "Where is it?", "RIGHT", "crop"),
        ({}, "Is it the leftmost one?", "no", "crop"),
        ({}, "Is it at the right-hand side?", "no", "crop"),
        ({}, "a right-handed pitcher", "x", "crop"),
        ({}, "What is bright and upright?", "leftovers in copyright", "crop_flip"),
        ({"task": "captioning_with_reading"}, "What is it?", "a cat", "resize"),
        ({"details": {"ocr_tokens": ["STOP"]}}, "What is it?", "a cat", "resize"),
        ({"details": {"ocr_tokens": []}}, "What is it?", "a cat", "crop_flip"),
    ],
)
def test_augmentation_leaves_the_text_true(
    values: dict, instruction: str, answer: str, expected: str
) -> None:
    strength = ("resize", "crop", "crop_flip")
    for most in strength:
        wanted = min(most, expected, key=strength.index)
        assert augmentation_for(example(**values), instruction, answer, most) == wanted


def test_the_policy_reaches_the_image(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        sampling,
        "open_pixels",
        lambda data, size, augmentation, random: asked.append(augmentation) or torch.zeros(3, 8, 8),
    )
    recipe = recipe_of(written)
    draw_sample(example(instructions=("Left?",)), recipe, 0)
    draw_sample(example(task="question_answering_with_reading"), recipe, 0)
    draw_sample(example(), recipe, 0)
    assert asked == ["crop", "resize", "crop_flip"]


def test_frames_are_varied_alike(written: Path) -> None:
    frame = picture((9, 200, 30), (40, 30))
    sample = draw_sample(example(images=(frame,) * 3), recipe_of(written), 1)
    assert sample.pixels_ICHW.shape == (3, 3, 8, 8)
    assert (sample.pixels_ICHW == sample.pixels_ICHW[0]).all()
    assert draw_sample(example(images=()), recipe_of(written), 1).pixels_ICHW.shape[0] == 0


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("plain", {"What is it?"}),
        ("identifier", {"[image_question_answering: vqav2] What is it?"}),
        ("instructions", {"What is it?", "Name it:", "Say what it is."}),
    ],
)
def test_prompts(written: Path, prompts: str, expected: set[str]) -> None:
    recipe = recipe_of(written, prompts=prompts)
    assert {draw_sample(example(), recipe, epoch).instruction for epoch in range(40)} == expected
    if prompts == "identifier":
        bare = draw_sample(example(plain="", task="captioning"), recipe, 0)
        assert bare.instruction == "[captioning: vqav2]"


def test_a_draw_is_by_seed_epoch_id_and_repeat(written: Path) -> None:
    recipe = recipe_of(written)
    many = example(instructions=tuple(map(str, range(10**4))))

    def drawn(one: Record = many, epoch: int = 0, repeat: int = 0, seed: int = 3) -> str:
        return draw_sample(one, recipe.model_copy(update={"seed": seed}), epoch, repeat).instruction

    others = [
        drawn(epoch=1),
        drawn(repeat=1),
        drawn(repeat=2),
        drawn(seed=4),
        drawn(example(instructions=many.instructions, id="8")),
        drawn(example(instructions=many.instructions, dataset="okvqa")),
    ]
    assert drawn() == drawn()
    assert len({drawn(), *others}) == 7


def test_answers_by_weight(written: Path) -> None:
    recipe = recipe_of(written)
    drawn = Counter(draw_sample(example(), recipe, epoch).answer for epoch in range(2000))
    assert abs(drawn["net"] / 2000 - 0.75) < 0.04  # four standard deviations
    with pytest.raises(ValueError, match="vqav2 7: no answer to train on"):
        draw_sample(example(answers=()), recipe, 0)
