"""Bad shards and records that a job met while reading: what was found, and when it is too much."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ibtrain.data.mixture.shares import Mixture


class BadDataError(RuntimeError):
    """More of a dataset is bad than its budget allows, or nothing could be read for another
    reason.
    """


@dataclass(frozen=True)
class Incident:
    """Something bad.

    "refetched": a file was bad and was put right by fetching it again; "shard" and "record": it is
    given up, and its samples are replaced; "replaced": one draw was.
    """

    kind: Literal["refetched", "shard", "record", "replaced"]
    dataset: str
    shard: str
    record: int | None
    samples: int
    reason: str

    def __str__(self) -> str:
        record = "" if self.record is None else f", record {self.record}"
        return f"{self.dataset}, {self.shard}{record}, {self.kind}: {self.reason}"


class Ledger:
    """What is given up of each dataset, held against the budget.

    Args:
        mixture: gives the datasets' sizes and where they are kept.
        budget: the share of a dataset's samples that may be given up.
    """

    def __init__(self, mixture: Mixture, budget: float) -> None:
        self._budget = budget
        self._sizes = {dataset.name: dataset.size for dataset in mixture.datasets}
        self._locations = {dataset.name: dataset.location for dataset in mixture.datasets}
        self._shards: dict[tuple[str, str], int] = {}
        self._records: set[tuple[str, str, int]] = set()
        self._refetched: set[tuple[str, str, str]] = set()
        self._last: Incident | None = None

    def enter(self, incident: Incident) -> bool:
        """Takes note of an incident; whether it is a new one."""
        dataset, shard = incident.dataset, incident.shard
        if incident.kind == "refetched":
            known = (dataset, shard, incident.reason) in self._refetched
            self._refetched.add((dataset, shard, incident.reason))
            return not known
        if incident.kind == "replaced":
            return False
        if incident.record is None:
            known = (dataset, shard) in self._shards
            self._shards[dataset, shard] = incident.samples
        else:
            known = (dataset, shard, incident.record) in self._records
            self._records.add((dataset, shard, incident.record))
        self._last = incident
        return not known

    def given_up(self) -> Mapping[str, int]:
        """Samples of each dataset that are given up."""
        lost = dict.fromkeys(self._sizes, 0)
        for (dataset, _), samples in self._shards.items():
            lost[dataset] += samples
        for dataset, shard, _ in self._records:
            lost[dataset] += (dataset, shard) not in self._shards
        return lost

    def check(self) -> None:
        """Raises BadDataError where more is given up than the budget allows."""
        incident = self._last
        if incident is None:
            return
        lost, size = self.given_up()[incident.dataset], self._sizes[incident.dataset]
        if lost <= self._budget * size:
            return
        record = "" if incident.record is None else f", record {incident.record}"
        location = self._locations[incident.dataset]
        raise BadDataError(
            f"{lost} of {size} samples of {incident.dataset} cannot be read, more than "
            f"data.bad_shard_budget={self._budget:g} allows; the last is the shard "
            f"{location}/{incident.shard}{record}: {incident.reason}. Repair it with `ibtrain data "
            f"verify {location} --repair-from DIR_OR_URL`, or raise data.bad_shard_budget"
        )
