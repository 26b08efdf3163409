"""The balanced mixture: prepared datasets drawn together, in an order that the recipe determines.

p_d is proportional to sqrt(size_d) times a named factor (paper, section 2.4). Streaming draws,
shuffles and partitions; what is ours is everything that it does not notice: shards are checked
before it sees them, an epoch must give as many samples as was asked, and what determines the order
is in a fingerprint kept with every checkpoint.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from streaming import Stream, StreamingDataset
from torch.utils.data import DataLoader

from ibtrain.batch import Batch
from ibtrain.config import DataSection, MixtureEntry, Recipe
from ibtrain.data.collate import Sample, collate
from ibtrain.data.images import open_pixels
from ibtrain.data.records import Answer, Record
from ibtrain.data.shards import (
    HASHES,
    ShardIndex,
    check_index,
    columns_to_record,
    fingerprint,
    verify_shards,
)
from ibtrain.data.tokenization import InstructionTokenizer

SHUFFLE = "py1br"  # py1e puts repeats of an upsampled dataset into one batch now and then
_BALANCE = {"sqrt": 0.5, "proportional": 1.0, "uniform": 0.0}


@dataclass(frozen=True)
class MixedDataset:
    """One dataset of a mixture with its resolved share."""

    name: str
    index: ShardIndex
    size: int
    weight: float
    share: float
    samples_per_epoch: float


@dataclass(frozen=True)
class Mixture:
    """A resolved mixture: the datasets, and how many samples an epoch draws."""

    datasets: tuple[MixedDataset, ...]
    epoch_samples: int


def resolve_mixture(data: DataSection, global_batch: int) -> Mixture:
    """Sizes, weights and shares; an epoch is a whole number of global batches.

    Raises:
        ValueError: when a dataset is missing or its index is not safe to read, or when an epoch
            is smaller than one global batch.
    """
    indexes = [check_index(entry.path) for entry in data.mixture]
    weights = [
        _weight(entry, index, data.balance)
        for entry, index in zip(data.mixture, indexes, strict=True)
    ]
    total = sum(index.samples for index in indexes)
    asked = data.epoch_samples or total
    epoch_samples = asked // global_batch * global_batch
    if epoch_samples == 0:
        raise ValueError(
            f"an epoch of {asked} samples is smaller than one global batch of {global_batch}: "
            "raise data.epoch_samples or lower training.global_batch"
        )
    return Mixture(
        tuple(
            MixedDataset(
                name=entry.dataset,
                index=index,
                size=index.samples,
                weight=weight,
                share=weight / sum(weights),
                samples_per_epoch=epoch_samples * weight / sum(weights),
            )
            for entry, index, weight in zip(data.mixture, indexes, weights, strict=True)
        ),
        epoch_samples,
    )


def _weight(entry: MixtureEntry, index: ShardIndex, balance: str) -> float:
    if index.samples == 0:
        raise ValueError(f"{index.directory} holds no samples; remove it from data.mixture")
    return float(index.samples ** _BALANCE[balance] * entry.factor)


def verify_mixture(mixture: Mixture) -> None:
    """Hashes every shard: Streaming itself would hang, or end an epoch early, on a bad one.

    Raises:
        ValueError: naming the first shard that differs from its index.
    """
    for dataset in mixture.datasets:
        bad = verify_shards(dataset.index)
        if bad:
            raise ValueError(
                f"{len(bad)} of {len(dataset.index.shards)} shards in {dataset.index.directory} do "
                f"not match their index, the first is {bad[0].shard} ({bad[0].reason}); copy it "
                "again, or remove the directory and run `ibtrain data prepare` again"
            )


def order_fingerprint(recipe: Recipe, mixture: Mixture) -> dict[str, Any]:
    """Everything that determines which sample comes at which step, as plain JSON values."""
    return {
        "seed": recipe.seed,
        "global_batch": recipe.training.global_batch,
        "epoch_samples": mixture.epoch_samples,
        "canonical_nodes": _canonical_nodes(mixture),
        "shuffle": SHUFFLE,
        "datasets": {
            dataset.name: {"share": dataset.share, "shards": fingerprint(dataset.index)}
            for dataset in mixture.datasets
        },
    }


def changes_of_order(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """What differs between two fingerprints, one line each; empty when the order is the same."""
    lines = []
    for key in sorted(set(before) | set(now)):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += changes_of_order(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: was {old}, is {new}")
    return lines


def _canonical_nodes(mixture: Mixture) -> int:
    """A power of two that divides the epoch, so that Streaming neither pads nor depends on the
    number of nodes.
    """
    return math.gcd(64, mixture.epoch_samples)


class _MixtureDataset(StreamingDataset):  # type: ignore[misc]
    """Streaming's order over the mixture; each item is a ready `Sample`."""

    def __init__(
        self, recipe: Recipe, streams: Sequence[Stream], share: int, mixture: Mixture
    ) -> None:
        super().__init__(
            streams=streams,
            epoch_size=mixture.epoch_samples,
            batch_size=share,
            shuffle=True,
            shuffle_algo=SHUFFLE,
            shuffle_seed=recipe.seed,
            num_canonical_nodes=_canonical_nodes(mixture),
            batching_method="random",
            sampling_method="balanced",
        )
        self._recipe = recipe

    def __getitem__(self, at: int) -> Sample:
        record = columns_to_record(super().__getitem__(at))
        # During an epoch Streaming's counter already stands at the next one.
        return draw_sample(record, self._recipe, epoch=self.next_epoch - 1)


def draw_sample(record: Record, recipe: Recipe, epoch: int) -> Sample:
    """Chooses instruction, answer and augmentation by (seed, epoch, sample id) alone."""
    source = random.Random(f"{recipe.seed}/{epoch}/{record.dataset}/{record.id}")
    data = recipe.data
    frames = [
        open_pixels(image, data.image_size, data.augmentation, source) for image in record.images
    ]
    empty = torch.zeros(0, 3, data.image_size, data.image_size)
    pixels = torch.stack(frames) if frames else empty
    return Sample(
        pixels_ICHW=pixels,
        instruction=source.choice(record.instructions),
        answer=_draw_answer(record.answers, source),
        dataset=record.dataset,
        id=record.id,
    )


def _draw_answer(answers: Sequence[Answer], source: random.Random) -> str:
    """One answer, by its weight (how many annotators gave it)."""
    return source.choices(answers, [answer.weight for answer in answers])[0].text


@dataclass(frozen=True)
class _CollateShare:
    """This rank's share of a global batch, split into packed micro-batches."""

    tokenizer: InstructionTokenizer
    micro_batch: int
    query_tokens: int
    image_size: int

    def __call__(self, samples: Sequence[Sample]) -> list[Batch]:
        return [
            collate(
                samples[begin : begin + self.micro_batch],
                self.tokenizer,
                query_tokens=self.query_tokens,
                image_size=self.image_size,
            )
            for begin in range(0, len(samples), self.micro_batch)
        ]


class MixtureLoader:
    """Iterates over this rank's shares of the global batches, from any step on, without end.

    Build it after the process group is up (Streaming shares memory between a node's ranks).

    Args:
        recipe: the run.
        mixture: resolved and verified.
        tokenizer: of the base.
        query_tokens: visual tokens per image.
        world: number of ranks.
        cache: directory that shards are unpacked to.
        first_step: the step to begin at; 0 is the beginning.
    """

    def __init__(
        self,
        recipe: Recipe,
        mixture: Mixture,
        tokenizer: InstructionTokenizer,
        query_tokens: int,
        world: int,
        cache: Path,
        first_step: int = 0,
    ) -> None:
        training = recipe.training
        self.steps_per_epoch = mixture.epoch_samples // training.global_batch
        self._epoch, self._begin = divmod(first_step, self.steps_per_epoch)
        share = training.global_batch // world
        self._dataset = _MixtureDataset(recipe, _streams(mixture, cache), share, mixture)
        collate_share = _CollateShare(
            tokenizer, training.micro_batch, query_tokens, recipe.data.image_size
        )
        self._loader: DataLoader[Sample] = DataLoader(
            self._dataset,
            batch_size=share,
            num_workers=recipe.data.workers,
            collate_fn=collate_share,
            drop_last=True,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=2 if recipe.data.workers else None,
        )
        self._dataset.load_state_dict(
            {
                "epoch": self._epoch,
                "sample_in_epoch": self._begin * training.global_batch,
                "num_canonical_nodes": _canonical_nodes(mixture),
                "shuffle_seed": recipe.seed,
                "initial_physical_nodes": None,
            }
        )

    def __iter__(self) -> Iterator[list[Batch]]:
        """Micro-batches of this rank, one list per step.

        Raises:
            RuntimeError: when an epoch ends before its last step.
        """
        while True:
            given = 0
            for micro_batches in self._loader:
                given += 1
                yield micro_batches
            if self._begin + given != self.steps_per_epoch:
                raise RuntimeError(
                    f"epoch {self._epoch} of the mixture ended after {self._begin + given} of "
                    f"{self.steps_per_epoch} steps: a shard could not be read (see above, and "
                    "check the space left in the cache directory)"
                )
            self._epoch, self._begin = self._epoch + 1, 0


def _streams(mixture: Mixture, cache: Path) -> list[Stream]:
    """One stream per dataset, unpacked into a cache directory of its own content."""
    return [
        Stream(
            remote=str(dataset.index.directory.absolute()),
            local=str(cache / f"{dataset.name}-{fingerprint(dataset.index)[:16]}"),
            proportion=dataset.share,
            validate_hash=HASHES[-1],
            keep_zip=False,
        )
        for dataset in mixture.datasets
    ]
