"""Three updates of the engine, on two ranks, against torch's AdamW in one process."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ibtrain.config import load_recipe
from ibtrain.model.instructblip import set_trainable
from tests.distributed.conftest import Zygote
from tests.distributed.jobs import UPDATED, UPDATES, eight_samples, micro_batches_of, plain_model

SHARDINGS = ("zero1", "zero2", "zero3")


@pytest.fixture(scope="module")
def updated(zygote: Zygote, world_directory: Path, tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("updated")
    recipe = str(world_directory / "tiny.yaml")
    zygote.run(2, "tests.distributed.jobs:updated", recipe, str(out), *SHARDINGS)
    return {file.stem: load_file(file) for file in out.glob("*.safetensors")}


@pytest.fixture(scope="module")
def expected(world_directory: Path) -> dict[str, torch.Tensor]:
    """The oracle: one process, one batch, no DeepSpeed."""
    recipe = load_recipe(str(world_directory / "tiny.yaml"), UPDATED)
    model = plain_model(recipe)
    set_trainable(model, recipe.model.train_parts.model_dump())
    trained = dict(model.trainable())
    plain = [name for name, value in trained.items() if value.dim() < 2 or name.endswith(".bias")]
    optimizer = torch.optim.AdamW(
        [
            {"params": [trained[name] for name in plain], "weight_decay": 0.0},
            {"params": [value for name, value in trained.items() if name not in plain]},
        ],
        betas=recipe.training.betas,
        weight_decay=0.3,
    )
    (batch,) = micro_batches_of(recipe, eight_samples(16), 8)
    norms = []
    for rate in UPDATES:
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses_A = model(batch)
        (losses_A.sum() / losses_A.numel()).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(trained.values(), 0.05).item())
        optimizer.step()
        optimizer.zero_grad()
    values = {name: value.detach() for name, value in trained.items()}
    return values | {"norms": torch.tensor(norms, dtype=torch.float64)}


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_updates_equal_torchs(updated, expected, sharding: str) -> None:
    found = updated[sharding]
    assert found.keys() == expected.keys()
    assert min(expected["norms"]) > 0.05  # all three updates are clipped
    torch.testing.assert_close(found.pop("norms"), expected["norms"], rtol=1e-4, atol=0.0)
    for name, value in found.items():
        # Adam divides a gradient that is rounding alone by its own size: a key's bias moves anyhow.
        atol = 2 * sum(UPDATES) if name.endswith(("key.bias", "k_proj.bias")) else 2e-5
        assert torch.allclose(value, expected[name], rtol=1e-4, atol=atol), name
