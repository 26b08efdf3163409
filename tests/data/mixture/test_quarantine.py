"""The ledger of what could not be read."""

from pathlib import Path
from typing import Any

import pytest

from ibtrain.data.mixture.quarantine import BadDataError, Incident, Ledger
from tests.data.mixture.small_mixture import recipe_of, resolved


def test_the_ledger_counts_each_sample_once(written: Path) -> None:
    ledger = Ledger(resolved(recipe_of(written)), budget=0.2)

    def incident(kind: Any, shard: str, row: int | None, samples: int = 1) -> Incident:
        return Incident(kind, "big", shard, row, samples, "why")

    assert ledger.enter(incident("record", "x", 3))
    assert not ledger.enter(incident("record", "x", 3))
    assert not ledger.enter(incident("replaced", "x", 3))
    assert ledger.enter(incident("refetched", "x", None, 6))
    assert ledger.given_up() == {"big": 1, "small": 0, "one": 0}
    assert ledger.enter(incident("shard", "x", None, 6))  # record 3 is in it
    assert ledger.given_up()["big"] == 6
    assert ledger.enter(incident("record", "y", 1))
    assert ledger.enter(incident("record", "y", 2))
    ledger.check()  # 8 of 40 are just within
    ledger.enter(incident("record", "y", 5))
    with pytest.raises(BadDataError, match=r"^9 of 40 samples of big cannot be read"):
        ledger.check()
