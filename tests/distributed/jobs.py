"""What ranks run in these tests, besides the command line itself."""

import json
import os
from functools import cache
from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from safetensors.torch import save_file

from ibtrain.cli import main
from ibtrain.config import Recipe, load_recipe
from ibtrain.data.mixture.collate import Sample, collate
from ibtrain.data.mixture.loader import MixtureLoader
from ibtrain.data.mixture.reader import cache_directory
from ibtrain.data.mixture.shares import resolve_mixture
from ibtrain.distributed.processes import start_processes
from ibtrain.distributed.ranks import on_every_rank, on_rank_zero_only
from ibtrain.model.instructblip import InstructBlip
from ibtrain.pretrained.base import base_config, base_directory, base_sources
from ibtrain.pretrained.fit import choose_sources
from ibtrain.tokenization import InstructionTokenizer
from ibtrain.training.engine import Engine

FIRST_MOMENT = 0.1  # exp_avg after the first step is (1 - beta1) times the gradient


def eight_samples(image_size: int, *, images: bool = True) -> list[Sample]:
    """A global batch with very unequal answers; one sample in it has no image."""
    answers = [
        "red",
        "a red circle at the top left and a blue square at the bottom right",
        "2",
        "no",
    ]
    samples = []
    for index in range(8):
        generator = torch.Generator().manual_seed(index)
        count = 0 if index == 5 or not images else 1
        samples.append(
            Sample(
                torch.randn(count, 3, image_size, image_size, generator=generator),
                f"Question: What color is the circle {'?' * (index % 3)} Short answer:",
                answers[index % 4] + " cat" * index,
                "vqav2",
                str(index),
            )
        )
    return samples


def tokenizer_of(recipe: Recipe) -> InstructionTokenizer:
    """The base's tokenizer."""
    return _tokenizer_in(base_directory(recipe.model))


@cache
def _tokenizer_in(directory: Path) -> InstructionTokenizer:
    return InstructionTokenizer.from_directory(directory)


def micro_batches_of(recipe: Recipe, samples: list[Sample], size: int) -> list:
    """Samples in micro-batches of `size`."""
    config = base_config(recipe.model)
    return [
        collate(
            samples[begin : begin + size],
            tokenizer_of(recipe),
            query_tokens=config.num_query_tokens,
            image_size=recipe.data.image_size,
        )
        for begin in range(0, len(samples), size)
    ]


def plain_model(recipe: Recipe) -> InstructBlip:
    """The recipe's base as one module, for an oracle without DeepSpeed."""
    config = base_config(recipe.model)
    (source,) = base_sources(recipe.model, config, recipe.seed)
    model = InstructBlip(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(source.get(name))
    return model


def build_engine(recipe: Recipe, ranks) -> Engine:
    """An engine on the recipe's base."""
    config = base_config(recipe.model)
    sources = base_sources(recipe.model, config, recipe.seed)
    chosen = choose_sources(config, recipe.model.instruction_aware, sources)
    return Engine(recipe, ranks, config, chosen)


def gradients(arguments: list[str]) -> None:
    """Writes the gradient of the fixed global batch, under each (stage, micro-batch) asked for."""
    recipe_file, out, *cases = arguments
    ranks = start_processes()
    for case in cases:
        sharding, micro_batch, kind = case.split(":")
        recipe = load_recipe(
            recipe_file,
            [
                *([] if sharding == "partition-all" else [f"sharding={sharding}"]),
                f"training.micro_batch={micro_batch}",
                "training.gradient_clip=0",
                "model.train_parts.language=full",
                "model.train_parts.vision=full",
            ],
        )
        engine = build_engine(recipe, ranks)
        samples = eight_samples(recipe.data.image_size)
        if kind == "one-rank-without-image":
            blind = eight_samples(recipe.data.image_size, images=False)
            samples = samples[:4] + blind[4:]
        share = len(samples) // ranks.world
        own = samples[ranks.rank * share : (ranks.rank + 1) * share]
        batches = micro_batches_of(recipe, own, int(micro_batch))
        total = sum(
            batch.answer_ids_A.numel() for batch in micro_batches_of(recipe, samples, len(samples))
        )
        engine.step(batches, total, rate=0.0, update=0)
        collected = {
            name: safe_get_full_optimizer_state(parameter, "exp_avg").clone() / FIRST_MOMENT
            for name, parameter in engine.model.trainable()
        }
        if ranks.rank == 0:
            save_file(collected, Path(out) / f"{ranks.world}-{case.replace(':', '-')}.safetensors")


UPDATES = (1.0e-2, 5.0e-3, 2.0e-3)
"""The learning rates of the three updates of `updated`."""
UPDATED = (
    "training.micro_batch=2",
    "training.gradient_clip=0.05",
    "training.weight_decay=0.3",
    "model.train_parts.language=full",
)


def updated(arguments: list[str]) -> None:
    """Writes the parameters after three updates on the fixed global batch, and the norms."""
    recipe_file, out, *shardings = arguments
    ranks = start_processes()
    for sharding in shardings:
        recipe = load_recipe(recipe_file, [*UPDATED, f"sharding={sharding}"])
        engine = build_engine(recipe, ranks)
        samples = eight_samples(recipe.data.image_size)
        share = len(samples) // ranks.world
        own = samples[ranks.rank * share : (ranks.rank + 1) * share]
        total = sum(
            batch.answer_ids_A.numel() for batch in micro_batches_of(recipe, samples, len(samples))
        )
        batches = micro_batches_of(recipe, own, recipe.training.micro_batch)
        norms = [
            engine.step(batches, total, rate, update)[1] for update, rate in enumerate(UPDATES)
        ]
        values = {
            name: safe_get_full_fp32_param(parameter).clone()
            for name, parameter in engine.model.trainable()
        }
        if ranks.rank == 0:
            values["norms"] = torch.tensor(norms, dtype=torch.float64)
            save_file(values, Path(out) / f"{sharding}.safetensors")


def sample_order(arguments: list[str]) -> None:
    """Writes the samples of each global batch from a first step on, as the loader gives them."""
    recipe_file, out, first, last, *overrides = arguments
    recipe = load_recipe(recipe_file, overrides)
    ranks = start_processes()
    mixture = resolve_mixture(recipe.data, recipe.training.global_batch)
    loader = MixtureLoader(
        recipe,
        mixture,
        tokenizer_of(recipe),
        base_config(recipe.model).num_query_tokens,
        rank=ranks.rank,
        world=ranks.world,
        cache=cache_directory(recipe),
        first_step=int(first),
    )
    batches = []
    for step, micro_batches in zip(range(int(first), int(last)), loader, strict=False):
        own = [
            [
                (name, sample, int(batch.token_ids_T.sum()))
                for name, sample in zip(batch.datasets, batch.sample_ids, strict=True)
            ]
            for batch in micro_batches
        ]
        gathered = [None] * ranks.world
        torch.distributed.all_gather_object(gathered, [pair[:2] for part in own for pair in part])
        # The ranks' shares end to end: the same sequence, not only the same set.
        batches.append([step, [tuple(pair) for part in gathered for pair in part]])
    if ranks.rank == 0:
        Path(out).write_text(json.dumps(batches))


def another_recipe_on_rank_one(arguments: list[str]) -> int:
    """`ibtrain` with its last argument on rank 1 alone."""
    alone = 1 if os.environ["RANK"] == "1" else 0
    return main(arguments[: len(arguments) - 1 + alone])


def outcomes(arguments: list[str]) -> None:
    """Writes what each rank gets of an action that does well, and of one that fails on rank 1."""
    (out,) = arguments
    ranks = start_processes()
    met = [on_every_rank(ranks, lambda: ranks.rank), on_rank_zero_only(ranks, lambda: ranks.rank)]

    def fail() -> None:
        if ranks.rank == 1:
            raise FileNotFoundError("no such shard")

    try:
        on_every_rank(ranks, fail)
    except OSError as error:
        met += [type(error).__name__, str(error)]
    Path(f"{out}.{ranks.rank}").write_text(json.dumps(met))
