"""Training both families of language models, frozen and with adapters, step by step.

A case is written `family:language:sharding:recompute:steps:images:precision`, for example
`t5:lora:partition-matrices:true:20:all:fp32`; with `half` the second half of every batch has no
image.
"""

import gc
import hashlib
import json
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from deepspeed.runtime.zero import GatheredParameters
from deepspeed.utils import safe_get_full_optimizer_state
from safetensors.torch import load_file

from ibtrain.batch import Batch
from ibtrain.config import Recipe
from ibtrain.data.mixture.collate import Sample
from ibtrain.distributed.processes import start_processes
from ibtrain.distributed.ranks import Ranks
from ibtrain.model.instructblip import InstructBlip, set_trainable
from ibtrain.pretrained.base import base_config, base_sources
from ibtrain.pretrained.fit import choose_sources
from ibtrain.run_directory import TRAINABLE, latest_step
from ibtrain.training.checkpoint import save_checkpoint
from ibtrain.training.engine import Engine, _decay_groups
from tests.distributed.jobs import eight_samples, micro_batches_of

RATE = 2e-3


@dataclass(frozen=True)
class Case:
    family: str
    language: str
    sharding: str
    recompute: bool
    steps: int
    images: str
    precision: str

    @classmethod
    def of(cls, text: str) -> "Case":
        family, language, sharding, recompute, steps, *others = text.split(":")
        return cls(family, language, sharding, recompute == "true", int(steps), *others)

    def recipe(self, directory: Path) -> Recipe:
        sharding = directory / f"{self.sharding}.json"
        model = {
            "base": directory / self.family,
            "precision": self.precision,
            "gradient_checkpointing": self.recompute,
            "train_parts": {"language": self.language},
        }
        if self.language == "lora":
            model["lora"] = {"rank": 3, "alpha": 6, "dropout": 0.0}
        return Recipe.model_validate(
            {
                "name": "family",
                "output": directory / "run",
                "seed": 3,
                "sharding": str(sharding) if sharding.is_file() else self.sharding,
                "model": model,
                "data": {
                    "mixture": [{"dataset": "vqav2", "path": "none"}],
                    "image_size": 16,
                    "max_instruction_tokens": 60,
                },
                "training": {"steps": 60, "global_batch": 8, "micro_batch": 4},
            }
        )

    def samples(self, step: int) -> list[Sample]:
        """A global batch; another one every step."""
        seen, blind = eight_samples(16), eight_samples(16, images=False)
        samples = seen[:4] + (blind if self.images == "half" else seen)[4:]
        return [samples[(index * 3 + step) % 4 + 4 * (index // 4)] for index in range(8)]


def plain_curve(directory: Path, case: Case) -> list[float]:
    """The oracle: one process, no DeepSpeed, no checkpointing, whole batches."""
    recipe = case.recipe(directory)
    config = base_config(recipe.model)
    sources = base_sources(recipe.model, config, recipe.seed)
    chosen = choose_sources(config, True, sources, recipe.model.lora)
    model = InstructBlip(config, True, recipe.model.lora)
    with torch.no_grad():
        for name, parameter in model.weights():
            parameter.copy_(chosen[name].get(name))
    set_trainable(model, recipe.model.train_parts.model_dump())
    optimizer = torch.optim.AdamW(
        _decay_groups(model.train(), recipe.training.weight_decay), lr=RATE, betas=(0.9, 0.999)
    )
    curve = []
    for step in range(case.steps):
        samples = case.samples(step)
        (batch,) = micro_batches_of(recipe, samples, len(samples))
        loss = model(batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


def train(arguments: list[str]) -> None:
    """Runs cases one after the other; rank 0 writes what it found of each as JSON."""
    directory, out, *cases = arguments
    ranks = start_processes()
    for text in cases:
        found = _train(Path(directory), Path(out), Case.of(text), ranks)
        gc.collect()
        if ranks.rank == 0:
            file = Path(out) / f"{text.replace(':', '-')}.json"
            file.write_text(json.dumps(found))


def _engine(recipe: Recipe, ranks: Ranks) -> Engine:
    config = base_config(recipe.model)
    sources = base_sources(recipe.model, config, recipe.seed)
    chosen = choose_sources(config, True, sources, recipe.model.lora)
    return Engine(recipe, ranks, config, chosen)


def _train(directory: Path, out: Path, case: Case, ranks: Ranks) -> dict:
    recipe = case.recipe(directory)
    engine = _engine(recipe, ranks)
    frozen = _digests(engine)
    curve, still = [], []
    for step in range(case.steps):
        own, total = _share(recipe, case.samples(step), ranks)
        losses, _ = engine.step(own, total, rate=RATE, update=step)
        summed = torch.stack([loss.sum() for loss in losses]).sum()
        torch.distributed.all_reduce(summed)
        curve.append(summed.item() / total)
        if step < 2:
            still.append(_without_gradient(engine))
    after = _digests(engine)
    run = out / "-".join(map(str, ("run", *astuple(case))))
    assert save_checkpoint(engine, run, case.steps, {}, keep=1)
    saved = load_file(latest_step(run) / TRAINABLE)
    return {
        "curve": curve,
        "without_gradient": still,
        "frozen": list(frozen),
        "changed": [name for name in frozen if frozen[name] != after[name]],
        "saved": {name: list(tensor.shape) for name, tensor in saved.items()},
        "frequencies": _frequencies(engine),
    }


def _share(recipe: Recipe, samples: list[Sample], ranks: Ranks) -> tuple[list[Batch], int]:
    """This rank's micro-batches, and the answer tokens of all ranks."""
    share = len(samples) // ranks.world
    own = micro_batches_of(recipe, samples[ranks.rank * share : (ranks.rank + 1) * share], share)
    whole = micro_batches_of(recipe, samples, len(samples))
    return own, sum(batch.answer_ids_A.numel() for batch in whole)


def _frequencies(engine: Engine) -> dict | None:
    """The rotary frequencies of a Llama."""
    if not hasattr(engine.model.language_model, "model"):
        return None
    values = engine.model.language_model.model.rotary_emb.inv_freq
    return {"dtype": str(values.dtype), "values": values.tolist()}


def _digests(engine: Engine) -> dict[str, str]:
    """Of every frozen tensor's bits."""
    digests = {}
    for name, parameter in engine.model.weights():
        if parameter.requires_grad:
            continue
        with GatheredParameters([parameter], enabled=engine.stage == 3):
            assert parameter.numel() > 0, name
            bits = parameter.detach().contiguous().flatten().view(torch.uint8)
            digests[name] = hashlib.sha256(bits.numpy().tobytes()).hexdigest()
    return digests


def _without_gradient(engine: Engine) -> list[str]:
    """Trained tensors whose first moment is zero: they never had a gradient."""
    moments = {
        name: safe_get_full_optimizer_state(parameter, "exp_avg")
        for name, parameter in engine.model.trainable()
    }
    return [name for name, moment in moments.items() if not moment.abs().sum() > 0]
