"""The gradient does not depend on how the global batch is split among ranks and micro-batches."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.conftest import Zygote, tiny_recipe
from tests.distributed.jobs import eight_samples, micro_batches_of, plain_model

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def gradients(zygote: Zygote, world_directory: Path, tmp_path_factory) -> dict:
    """Gradients by case, from one start with one rank and one start with two."""
    out = tmp_path_factory.mktemp("gradients")
    recipe = str(world_directory / "tiny.yaml")
    job = "tests.distributed.jobs:gradients"
    zygote.run(1, job, recipe, str(out), "partition-all:2:whole", "zero3:8:whole")
    zygote.run(
        2,
        job,
        *(recipe, str(out), "partition-all:2:whole", "zero3:4:whole", "zero2:2:whole"),
        *("zero1:3:whole", "partition-all:2:one-rank-without-image"),
    )
    return {file.stem: load_file(file) for file in out.glob("*.safetensors")}


def plain_gradient(directory: Path, samples: list) -> dict[str, torch.Tensor]:
    """The oracle: one process, one batch, no DeepSpeed."""
    recipe = tiny_recipe(directory)
    model = plain_model(recipe)
    (batch,) = micro_batches_of(recipe, samples, len(samples))
    losses_A = model(batch)
    (losses_A.sum() / losses_A.numel()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    size = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm()
        # A key's bias has no gradient but rounding: it is measured against the whole.
        assert error <= TOLERANCE * gradient.norm() + 1e-8 * size, (name, error, gradient.norm())


@pytest.mark.parametrize(
    "case",
    [
        "1-partition-all-2-whole",
        "1-zero3-8-whole",
        "2-partition-all-2-whole",
        "2-zero3-4-whole",
        "2-zero2-2-whole",
        "2-zero1-3-whole",
    ],
)
def test_same_gradient_for_any_split(gradients: dict, world_directory: Path, case: str) -> None:
    assert_same(gradients[case], plain_gradient(world_directory, eight_samples(16)))


def test_rank_without_images_trains_on(gradients: dict, world_directory: Path) -> None:
    samples = eight_samples(16)[:4] + eight_samples(16, images=False)[4:]
    assert_same(
        gradients["2-partition-all-2-one-rank-without-image"],
        plain_gradient(world_directory, samples),
    )
