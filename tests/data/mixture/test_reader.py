"""Samples that cannot be read, and what stands in their stead."""

import shutil
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from ibtrain.data.mixture import order
from ibtrain.data.mixture.loader import MixtureLoader
from ibtrain.data.mixture.quarantine import BadDataError
from ibtrain.data.mixture.reader import Draw, MixtureReader
from ibtrain.data.records import Record
from tests.data.mixture.small_mixture import FORMS, Tokens, batches, copied, recipe_of, resolved
from tests.data.small_shards import record, write_shards


def test_a_damaged_image_is_replaced_and_counted(tmp_path: Path) -> None:
    def make(dataset: str, number: int) -> Record:
        good = record(dataset, number)
        return good if number != 4 else Record(**{**vars(good), "images": (b"no image",)})

    write_shards(tmp_path / "a", "a", 30, per_shard=10, make=make)
    recipe = recipe_of(tmp_path, {"dataset": "a"}, batch=10, bad_shard_budget=0.05)
    found = batches(recipe, 3)
    ids = Counter(id for batch in found for _, id in batch[:-1])
    assert sum(ids.values()) == 30 and ids["4"] == 0 and max(ids.values()) == 2
    loader = MixtureLoader(
        recipe, resolved(recipe), Tokens(), 2, rank=0, world=1, cache=tmp_path / "cache"
    )
    list(islice(loader, 6))  # the sample comes twice
    kinds = [incident.kind for incident in loader.take_incidents()]
    assert Counter(kinds) == {"record": 1, "replaced": 2}
    assert loader.take_incidents() == []
    refused = recipe_of(tmp_path, {"dataset": "a"}, batch=10, bad_shard_budget=0.01)
    with pytest.raises(BadDataError, match=r"^1 of 30 samples of a cannot .*record 4: not a read"):
        batches(refused, 3)


def test_a_replacement_is_of_the_same_form(written: Path, tmp_path: Path) -> None:
    directory = copied(written, tmp_path)
    shard = directory / "formed/shard.00002.mds.zstd"
    entry = {"dataset": "formed", "forms": {"multiple_choice": 0.5}}
    recipe = recipe_of(directory, entry, batch=10, bad_shard_budget=0.2)
    mixture = resolved(recipe)
    shutil.rmtree(directory / "cache")
    shard.write_bytes(bytes(shard.stat().st_size))
    reader = MixtureReader(recipe, mixture, directory / "cache")
    found = order.epoch_order(mixture.order_strata(), 0, seed=3, global_batch=10)
    rows = zip(found.stratum.ravel(), found.number.ravel(), found.repeat.ravel(), strict=True)
    for position, (stratum, number, repeat) in enumerate(rows):
        sample = reader.sample(Draw(0, position, int(stratum), int(number), int(repeat)))
        assert int(sample.id) not in range(8, 12)
        assert FORMS[int(sample.id) % 3 == 0] == mixture.strata()[stratum][1].form
    kinds = Counter(incident.kind for incident in reader.take_incidents())
    assert kinds["shard"] == 1 and kinds["replaced"] >= 1
