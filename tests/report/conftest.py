"""Run directories as training leaves them, written by what training writes them with."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ibtrain.config import Recipe, dump_recipe
from ibtrain.fencing import Incarnation
from ibtrain.run_directory import OPTIMIZER, STATE, TRAINABLE, publish_step, take_run
from ibtrain.training.telemetry import Telemetry
from tests.data.small_shards import write_shards

SHARES = {"vqav2": 0.75, "llava": 0.25}


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report-shards")
    for name in SHARES:
        write_shards(folder / name, name, 12)
    return folder


def recipe_of(run: Path, shards: Path, **training: Any) -> Recipe:
    mixture = [{"dataset": name, "path": str(shards / name)} for name in SHARES]
    return Recipe.model_validate(
        {
            "name": "tried",
            "output": run,
            "sharding": "zero2",
            "model": {"base": "Salesforce/instructblip-vicuna-7b"},
            "data": {"mixture": mixture, "image_size": 16, "augmentation": "resize"},
            "training": {"steps": 40, "global_batch": 8, "micro_batch": 2} | training,
        }
    )


def write_run(
    run: Path, shards: Path, *, steps: int = 40, loss: float = 4.0, **training: Any
) -> Path:
    """A run of 40 steps that stopped after 20 and went on, with a bad record."""
    run.mkdir(parents=True)
    recipe = recipe_of(run, shards, **training)
    (run / "recipe.yaml").write_text(dump_recipe(recipe))
    for first in range(0, steps, 20):
        incarnation = take_run(run)
        telemetry = Telemetry(incarnation, first)
        with (run / "starts.jsonl").open("a") as file:
            start = {
                "step": first,
                "time": f"2026-11-2{first // 20}T10:00:00+00:00",
                "world_size": 2 if first else 4,
                "versions": {"torch": "2.13.0", "ibtrain": "0.1.0"},
                "environment": {"host": f"node{first}", "device": "NVIDIA H100"},
            }
            file.write(json.dumps(start) + "\n")
        for step in range(first + 1, min(first + 20, steps) + 1):
            telemetry.log(step, values(step, loss))
        _checkpoint(incarnation, min(first + 20, steps), recipe)
    bad = {"kind": "record", "dataset": "vqav2", "shard": "shard.00001.mds", "record": 3}
    telemetry.quarantine(30, [bad | {"samples": 1, "reason": "not a readable image"}])
    return run


def values(step: int, loss: float) -> dict[str, Any]:
    return {
        "loss": loss / step,
        "loss_by_dataset": {"vqav2": loss / step, "llava": 2 * loss / step},
        "samples_by_dataset": {"vqav2": 5, "llava": 3},
        "quarantined": {"vqav2": int(step == 30), "llava": 0},
        "samples_per_second": 16.0,
        "answer_tokens_per_second": 160.0,
        "data_wait": 0.01,
        "learning_rate": 1e-5,
        "gradient_norm": 1.5,
        "epoch": step / 20,
        "memory": {"host_gib": 2.5, "device_gib": 20.0},
    }


def _checkpoint(incarnation: Incarnation, step: int, recipe: Recipe) -> None:
    state = {
        "step": step,
        "ibtrain": "0.1.0",
        "world_size": 4,
        "order": {"datasets": {name: {"share": share} for name, share in SHARES.items()}},
        "recipe": recipe.model_dump(mode="json"),
    }

    def write_files(directory: Path) -> None:
        for name in (TRAINABLE, OPTIMIZER):
            (directory / name).write_bytes(bytes(500_000))
        (directory / STATE).write_text(json.dumps(state))

    publish_step(incarnation.run, step, write_files, incarnation)


def change_recipe(run: Path, **changes: Any) -> None:
    content = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump(content | changes))
