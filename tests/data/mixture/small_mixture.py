"""A recipe over three small datasets and one of two forms, and what its loader feeds a model."""

import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ibtrain.config import Recipe
from ibtrain.data.mixture.loader import MixtureLoader
from ibtrain.data.mixture.shares import Mixture, resolve_mixture
from ibtrain.data.records import Record
from ibtrain.tokenization import InstructionTokens
from tests.data.small_shards import record

SIZES = {"big": 40, "small": 9, "one": 1}


FORMS = ("visual_question_answering", "multiple_choice")


def with_forms(dataset: str, number: int) -> Record:
    return record(dataset, number, FORMS[number % 3 == 0])


def recipe_of(directory: Path, *entries: dict[str, Any], batch: int = 8, **data: Any) -> Recipe:
    listed = entries or tuple({"dataset": name} for name in SIZES)
    mixture = [{"path": str(directory / entry["dataset"])} | entry for entry in listed]
    values = {"mixture": mixture, "image_size": 8, "workers": 0, "cache": directory / "cache"}
    return Recipe.model_validate(
        {
            "name": "small",
            "output": directory / "run",
            "seed": 3,
            "model": {"base": "nowhere"},
            "data": values | data,
            "training": {"steps": 9, "global_batch": batch, "micro_batch": 3},
        }
    )


def resolved(recipe: Recipe) -> Mixture:
    return resolve_mixture(recipe.data, recipe.training.global_batch)


class Tokens:
    end_id = 2

    def instruction(self, text: str) -> InstructionTokens:
        return InstructionTokens(qformer=(1, 2), language=(3, *text.encode()))

    def answer(self, text: str) -> tuple[int, ...]:
        return (*text.encode(), 2)


def batches(recipe: Recipe, steps: int, first: int = 0, world: int = 1) -> list[list[tuple]]:
    """Every global batch: dataset, id and a digest of what the model is fed, rank after rank."""
    mixture = resolved(recipe)
    loaders = [
        MixtureLoader(
            recipe,
            mixture,
            Tokens(),
            2,
            rank=rank,
            world=world,
            cache=recipe.data.cache,
            first_step=first,
        )
        for rank in range(world)
    ]
    found = []
    for shares in islice(zip(*map(iter, loaders), strict=True), steps):
        micro_batches = [batch for share in shares for batch in share]
        names = [pair for b in micro_batches for pair in zip(b.datasets, b.sample_ids, strict=True)]
        assert len(names) == recipe.training.global_batch
        pixels = torch.cat([batch.pixels_ICHW for batch in micro_batches])
        tokens = torch.cat([batch.answer_ids_A for batch in micro_batches])
        prompts = torch.cat([batch.token_ids_T for batch in micro_batches])
        digest = (pixels.double().sum().item(), tokens.tolist(), prompts.tolist())
        found.append([*names, digest])
    for loader in loaders:
        loader.close()
    return found


def copied(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy", ignore=shutil.ignore_patterns("cache")))
