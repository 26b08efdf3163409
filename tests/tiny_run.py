"""A run directory with a checkpoint, without training: what `open_model` and exports start from."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ibtrain.config import Recipe
from ibtrain.model.instructblip import part_of
from ibtrain.model.lora import is_adapter
from ibtrain.pretrained.base import base_config, base_directory, base_sources, record_base
from ibtrain.pretrained.fit import choose_sources, parameter_shapes
from ibtrain.run_directory import OPTIMIZER, STATE, TRAINABLE, publish_step
from ibtrain.tokenization import InstructionTokenizer
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


def tokenizer_of(recipe: Recipe) -> InstructionTokenizer:
    """The base's tokenizers."""
    return InstructionTokenizer.from_directory(base_directory(recipe.model))


def write_tiny_run(run: Path, step: int = 3, **model: Any) -> dict[str, torch.Tensor]:
    """Writes RUN with a checkpoint of `step`, in which every Q-Former and projection weight is the
    base's times 1.5 plus step / 100, and adapters, if there are any, are random; returns them."""
    recipe = tiny_recipe(run, **model)
    section = recipe.model
    config = base_config(section)
    sources = base_sources(section.model_copy(update={"lora": None}), config, recipe.seed)
    chosen = choose_sources(config, section.instruction_aware, sources)
    trained = {
        name: 1.5 * source.get(name).float() + step / 100
        for name, source in chosen.items()
        if part_of(name) in ("qformer", "projection")
    }
    generator = torch.Generator().manual_seed(step)
    for name, shape in parameter_shapes(config, section.instruction_aware, section.lora).items():
        if is_adapter(name):
            trained[name] = 0.3 * torch.randn(shape, generator=generator)
    base = record_base(section, config, tokenizer_of(recipe), recipe.seed)

    def write_files(directory: Path) -> None:
        save_file(trained, directory / TRAINABLE)
        save_file({"none": torch.zeros(1)}, directory / OPTIMIZER)
        state = {"step": step, "recipe": recipe.model_dump(mode="json"), "base": base}
        (directory / STATE).write_text(json.dumps(state))

    publish_step(run, step, write_files)
    return trained
