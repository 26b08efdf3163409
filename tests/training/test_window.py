"""Sums over steps become means by dataset."""

import dataclasses

import pytest
import torch

from ibtrain.batch import Batch
from ibtrain.training.window import Window

NAMES = ["coco_caption", "vqav2", "aokvqa"]


def batch(datasets: tuple[str, ...], answer_tokens: tuple[int, ...]) -> Batch:
    """A micro-batch of which only what a window looks at is there."""
    nothing = torch.empty(0)
    fields = {field.name: nothing for field in dataclasses.fields(Batch)}
    samples = torch.arange(len(datasets))
    answer_sample_A = samples.repeat_interleave(torch.tensor(answer_tokens))
    return Batch(**fields | {"datasets": datasets, "answer_sample_A": answer_sample_A})


def test_means_over_steps_by_dataset():
    window = Window(NAMES, torch.device("cpu"))
    first = batch(("vqav2", "coco_caption"), (1, 3))
    window.add([first], [torch.tensor([4.0, 1.0, 2.0, 3.0])], seconds=2.0, waited=0.5)
    second = batch(("vqav2", "vqav2"), (2, 2))
    window.add([second], [torch.tensor([1.0, 1.0, 2.0, 4.0])], seconds=2.0, waited=0.1)
    window.replaced(["vqav2", "aokvqa", "vqav2"])
    assert window.close(world=1) == {
        "loss": 18 / 8,
        "loss_by_dataset": {"coco_caption": 2.0, "vqav2": 12 / 5},
        "samples_by_dataset": {"coco_caption": 1, "vqav2": 3, "aokvqa": 0},
        "quarantined": {"coco_caption": 0, "vqav2": 2, "aokvqa": 1},
        "samples_per_second": 1.0,
        "answer_tokens_per_second": 2.0,
        "data_wait": pytest.approx(0.15),
    }


def test_a_closed_window_begins_anew():
    window = Window(NAMES, torch.device("cpu"))
    for loss in (1.0, 5.0):
        window.add([batch(("aokvqa",), (1,))], [torch.tensor([loss])], seconds=1.0, waited=0.0)
        closed = window.close(world=1)
        assert closed["loss"] == loss
        assert closed["samples_by_dataset"] == {"coco_caption": 0, "vqav2": 0, "aokvqa": 1}


def test_many_small_losses_are_summed_in_double_precision():
    window = Window(["vqav2"], torch.device("cpu"))
    losses = torch.full((3000,), 0.1, dtype=torch.bfloat16)
    window.add([batch(("vqav2",), (3000,))], [losses], seconds=1.0, waited=0.0)
    assert window.close(world=1)["loss"] == pytest.approx(float(losses[0]), rel=1e-12)
