"""The balanced mixture: prepared datasets drawn together, in an order that the recipe determines.

p_d is proportional to sqrt(size_d) times a named factor (paper, section 2.4). A dataset is one
stratum of the mixture, or one stratum per form of its records where the recipe weighs forms.
order.py says which sample of which stratum comes when, loader.py reads it.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from ibtrain.config import DataSection, MixtureEntry
from ibtrain.data.mixture.order import OrderStratum, largest_remainder
from ibtrain.data.mixture.shard_cache import ShardCache, remote_index_directory
from ibtrain.data.shards.records import ShardIndex, check_index, read_index
from ibtrain.data.shards.remote import local_directory

_BALANCE = {"sqrt": 0.5, "proportional": 1.0, "uniform": 0.0}


@dataclass(frozen=True)
class MixtureStratum:
    """Samples of a dataset that are drawn alike: all of them, or those of one form.

    `members` gives the samples' numbers in the dataset in rising order, None for all of them;
    `draws` is how many an epoch has.
    """

    name: str
    form: str | None
    members: npt.NDArray[np.uint32] | None
    shard_samples: npt.NDArray[np.int64]
    weight: float
    draws: int

    @property
    def size(self) -> int:
        """Samples of the stratum."""
        return int(self.shard_samples.sum())


@dataclass(frozen=True)
class MixedDataset:
    """One dataset of a mixture with its resolved share.

    `samples_per_epoch` is what its share asks for, `draws` what an epoch has: within 1 of it, or
    within one global batch where whole batches are drawn.
    """

    name: str
    location: str
    index: ShardIndex
    size: int
    weight: float
    share: float
    samples_per_epoch: float
    draws: int
    strata: tuple[MixtureStratum, ...]


@dataclass(frozen=True)
class Mixture:
    """A resolved mixture: the datasets, and how many samples an epoch draws."""

    datasets: tuple[MixedDataset, ...]
    epoch_samples: int
    global_batch: int
    draw: Literal["sample", "batch"]

    def strata(self) -> list[tuple[int, MixtureStratum]]:
        """Every stratum, with the position of its dataset; the order counts strata so."""
        return [
            (position, stratum)
            for position, dataset in enumerate(self.datasets)
            for stratum in dataset.strata
        ]

    def order_strata(self) -> list[OrderStratum]:
        """The strata as the order takes them."""
        return [
            OrderStratum(stratum.name, stratum.shard_samples, stratum.draws)
            for _, stratum in self.strata()
        ]


def resolve_mixture(data: DataSection, global_batch: int, cache: Path | None = None) -> Mixture:
    """Sizes, weights and shares; an epoch is a whole number of global batches.

    Indexes are checked, and the sizes of the files that they name. Shards are opened only for a
    dataset whose forms are weighed.

    Args:
        data: the recipe's section.
        global_batch: samples of a step.
        cache: where indexes of object stores and unpacked shards are put; by default data.cache,
            and without that a directory that is removed again.

    Raises:
        ValueError: when a dataset is missing or its index is not safe to read, when a form that is
            weighed is not in it, or when an epoch is smaller than one global batch.
        OSError: when the cache cannot be written.
    """
    with _kept_or_temporary(cache or data.cache) as directory:
        indexes = [_open_index(entry.path, directory) for entry in data.mixture]
        divided = [
            _divided(entry, index, data.balance, directory)
            for entry, index in zip(data.mixture, indexes, strict=True)
        ]
    weights = [sum(stratum.weight for stratum in strata) for strata in divided]
    total = sum(index.samples for index in indexes)
    asked = data.epoch_samples or total
    steps = asked // global_batch
    if steps == 0:
        raise ValueError(
            f"an epoch of {asked} samples is smaller than one global batch of {global_batch}: "
            "raise data.epoch_samples or lower training.global_batch"
        )
    unit = global_batch if data.draw == "batch" else 1
    draws = _draws(steps * global_batch // unit, unit, data.mixture, divided)
    datasets = tuple(
        MixedDataset(
            name=entry.dataset,
            location=entry.path,
            index=index,
            size=index.samples,
            weight=weight,
            share=weight / sum(weights),
            samples_per_epoch=steps * global_batch * weight / sum(weights),
            draws=sum(stratum.draws for stratum in strata),
            strata=strata,
        )
        for entry, index, weight, strata in zip(data.mixture, indexes, weights, draws, strict=True)
    )
    return Mixture(datasets, steps * global_batch, global_batch, data.draw)


@contextmanager
def _kept_or_temporary(cache: Path | None) -> Iterator[Path]:
    if cache is not None:
        yield cache
        return
    with tempfile.TemporaryDirectory(prefix="ibtrain-") as directory:
        yield Path(directory)


def _open_index(location: str, cache: Path) -> ShardIndex:
    directory = local_directory(location)
    if directory is not None:
        return check_index(directory)
    return read_index(remote_index_directory(location, cache))


@dataclass(frozen=True)
class _Form:
    """The samples of one form, or all of them."""

    name: str | None
    factor: float
    members: npt.NDArray[np.uint32] | None
    shard_samples: npt.NDArray[np.int64]


def _divided(
    entry: MixtureEntry, index: ShardIndex, balance: str, cache: Path
) -> tuple[MixtureStratum, ...]:
    """The strata of a dataset; a form has its portion of the dataset's weight, times its factor."""
    if entry.forms:
        forms = _forms(entry, index, cache)
    else:
        whole = np.array([shard.samples for shard in index.shards], np.int64)
        forms = [_Form(None, 1.0, None, whole)]
    weight = index.samples ** _BALANCE[balance] * entry.factor
    return tuple(
        MixtureStratum(
            name=entry.dataset if form.name is None else f"{entry.dataset}/{form.name}",
            form=form.name,
            members=form.members,
            shard_samples=form.shard_samples,
            weight=weight * form.factor * int(form.shard_samples.sum()) / index.samples,
            draws=0,
        )
        for form in forms
    )


def _forms(entry: MixtureEntry, index: ShardIndex, cache: Path) -> list[_Form]:
    """The forms of a dataset's records, found by reading that one column of every record."""
    shards = ShardCache(entry.dataset, entry.path, index, cache)
    numbers: dict[str, list[int]] = {}
    first = 0
    ends = []
    for position in range(len(index.shards)):
        try:
            shard = shards.open(position)
            for number in range(len(shard)):
                numbers.setdefault(shard.text(number, "form"), []).append(first + number)
        except ValueError as error:
            raise ValueError(
                f"the forms of {entry.dataset} cannot be told apart: {error}; repair it with "
                f"`ibtrain data verify {entry.path} --repair-from DIR_OR_URL`"
            ) from error
        shards.forget(position)
        first += len(shard)
        ends.append(first)
    missing = sorted(set(entry.forms) - set(numbers))
    if missing:
        raise ValueError(
            f"data.mixture weighs the form {missing[0]!r} of {entry.dataset}, of which "
            f"{entry.path} holds no record; it holds {', '.join(sorted(numbers))}"
        )
    forms = []
    for name in sorted(numbers):
        factor = entry.forms.get(name, 1.0)
        if factor:
            members = np.array(numbers[name], np.uint32)
            in_shards = np.diff(np.searchsorted(members, [0, *ends]))
            forms.append(_Form(name, factor, members, in_shards.astype(np.int64)))
    if not forms:
        raise ValueError(
            f"data.mixture leaves every form of {entry.dataset} out; remove the dataset instead"
        )
    return forms


def _draws(
    units: int,
    unit: int,
    entries: Sequence[MixtureEntry],
    divided: Sequence[tuple[MixtureStratum, ...]],
) -> list[tuple[MixtureStratum, ...]]:
    """The strata with their draws: units go to the datasets first, then to a dataset's strata."""
    names = [entry.dataset for entry in entries]
    of_datasets = largest_remainder(
        units, [sum(stratum.weight for stratum in strata) for strata in divided], names
    )
    return [
        tuple(
            replace(stratum, draws=count * unit)
            for stratum, count in zip(
                strata,
                largest_remainder(
                    given,
                    [stratum.weight for stratum in strata],
                    [stratum.name for stratum in strata],
                ),
                strict=True,
            )
        )
        for strata, given in zip(divided, of_datasets, strict=True)
    ]
