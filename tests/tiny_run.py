"""A run directory with a checkpoint, without training: what `open_model` and exports start from."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ibtrain.config import Recipe
from ibtrain.model.base import base_config, base_sources
from ibtrain.model.instructblip import part_of
from ibtrain.model.weights import parameter_shapes
from ibtrain.run_directory import OPTIMIZER, STATE, TRAINABLE, publish_step
from tests.tiny import IMAGE_SIZE


def tiny_recipe(output: Path, **model: Any) -> Recipe:
    """A recipe whose `model` section is given."""
    return Recipe.model_validate(
        {
            "name": "tiny",
            "output": output,
            "model": {"precision": "fp32"} | model,
            "data": {
                "mixture": [{"dataset": "vqav2", "path": "shards/vqav2"}],
                "image_size": IMAGE_SIZE,
                "max_instruction_tokens": 24,
            },
            "training": {"steps": 9, "global_batch": 4, "micro_batch": 2},
        }
    )


def write_tiny_run(run: Path, step: int = 3, **model: Any) -> dict[str, torch.Tensor]:
    """Writes RUN with a checkpoint of `step`, in which every Q-Former and projection weight is the
    base's times 1.5 plus step / 100; returns those weights."""
    recipe = tiny_recipe(run, **model)
    config = base_config(recipe.model)
    source = base_sources(recipe.model, config, recipe.seed)[-1]
    trained = {
        name: 1.5 * source.get(name).float() + step / 100
        for name in parameter_shapes(config, recipe.model.instruction_aware)
        if part_of(name) in ("qformer", "projection")
    }

    def write_files(directory: Path) -> None:
        save_file(trained, directory / TRAINABLE)
        save_file({"none": torch.zeros(1)}, directory / OPTIMIZER)
        state = {"step": step, "recipe": recipe.model_dump(mode="json")}
        (directory / STATE).write_text(json.dumps(state))

    publish_step(run, step, write_files)
    return trained
