"""Reading single draws of a mixture: the sample that stands there, or the one in its stead."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ibtrain.config import Recipe
from ibtrain.data.mixture.collate import Sample
from ibtrain.data.mixture.order import replacement
from ibtrain.data.mixture.quarantine import BadDataError, Incident, Ledger
from ibtrain.data.mixture.sampling import draw_sample
from ibtrain.data.mixture.shard_cache import BadShardError, ShardCache
from ibtrain.data.mixture.shares import Mixture
from ibtrain.data.records import Record

_MOST_REPLACEMENTS = 1000


class Draw(NamedTuple):
    """One draw of the order: which epoch, which position in it, and the sample that stands there.

    `stratum` counts the mixture's strata, `number` the stratum's samples; `repeat` tells two draws
    of a sample in one epoch apart.
    """

    epoch: int
    position: int
    stratum: int
    number: int
    repeat: int


def cache_directory(recipe: Recipe) -> Path:
    """Where a run unpacks its shards."""
    return recipe.data.cache or recipe.output / "cache"


class MixtureReader:
    """Reads draws of a mixture. What cannot be read is replaced, within the budget.

    Args:
        recipe: the run.
        mixture: resolved.
        cache: directory that shards are unpacked to.
    """

    def __init__(self, recipe: Recipe, mixture: Mixture, cache: Path) -> None:
        self._recipe = recipe
        self._strata = mixture.strata()
        self._names = [dataset.name for dataset in mixture.datasets]
        self._shards = [
            ShardCache(dataset.name, dataset.location, dataset.index, cache)
            for dataset in mixture.datasets
        ]
        self._ends = [
            np.cumsum([shard.samples for shard in dataset.index.shards])
            for dataset in mixture.datasets
        ]
        self._ledger = Ledger(mixture, recipe.data.bad_shard_budget)
        self._bad_records: set[tuple[int, int, int]] = set()
        self._incidents: list[Incident] = []

    def sample(self, draw: Draw) -> Sample:
        """The sample of a draw, or the one in its stead.

        A replacement is of the same stratum, and chosen by (seed, epoch, position) alone.

        Raises:
            BadDataError: more is bad than the budget allows.
            CacheError: the cache cannot be written (an OSError).
        """
        size = self._strata[draw.stratum][1].size
        number = draw.number
        for attempt in range(_MOST_REPLACEMENTS):
            sample = self._try(draw, number)
            if sample is not None:
                return sample
            number = replacement(self._recipe.seed, draw.epoch, draw.position, attempt, size)
        name = self._strata[draw.stratum][1].name
        raise BadDataError(f"no sample of {name} in {_MOST_REPLACEMENTS} could be read")

    def record(self, stratum: int, number: int) -> Record:
        """Sample `number` of a stratum.

        Raises:
            ValueError: it is bad, or its shard is (BadShardError).
            CacheError: the cache cannot be written (an OSError).
        """
        dataset, shard, row = self._locate(stratum, number)
        record = self._shards[dataset].record(shard, row)
        # A dataset is called by its name in the mixture, whatever it was called when prepared.
        return replace(record, dataset=self._names[dataset])

    def take_incidents(self) -> list[Incident]:
        """What went wrong since the last call."""
        taken, self._incidents = self._incidents, []
        return taken

    def _locate(self, stratum: int, number: int) -> tuple[int, int, int]:
        """Dataset, shard, and row of the shard."""
        dataset, mixed = self._strata[stratum]
        at = number if mixed.members is None else int(mixed.members[number])
        shard = int(np.searchsorted(self._ends[dataset], at, "right"))
        return dataset, shard, at - int(self._ends[dataset][shard - 1] if shard else 0)

    def _try(self, draw: Draw, number: int) -> Sample | None:
        """The sample, or None after it was set aside."""
        dataset, shard, row = self._locate(draw.stratum, number)
        if (dataset, shard, row) in self._bad_records:
            self._note("replaced", dataset, shard, row, "")
            return None
        try:
            record = self.record(draw.stratum, number)
            return draw_sample(record, self._recipe, draw.epoch, draw.repeat)
        except BadShardError as error:
            self._note("shard", dataset, shard, None, str(error))
        except ValueError as error:
            self._bad_records.add((dataset, shard, row))
            self._note("record", dataset, shard, row, str(error))
        finally:
            cache = self._shards[dataset]
            for number_of_shard, reason in cache.repaired:
                self._note("refetched", dataset, number_of_shard, None, reason)
            cache.repaired.clear()
        self._note("replaced", dataset, shard, row, "")
        return None

    def _note(self, kind: Any, dataset: int, shard: int, row: int | None, reason: str) -> None:
        entry = self._shards[dataset].index.shards[shard]
        samples = entry.samples if row is None else 1
        incident = Incident(kind, self._names[dataset], entry.name, row, samples, reason)
        if self._ledger.enter(incident) or kind == "replaced":
            self._incidents.append(incident)
        self._ledger.check()
