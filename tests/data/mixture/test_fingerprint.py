"""What determines an order, held against another run's."""

import json
import shutil
from pathlib import Path
from typing import Any

from ibtrain.config import Recipe
from ibtrain.data.mixture.fingerprint import (
    changes_not_accepted,
    changes_of_order,
    order_fingerprint,
)
from tests.data.mixture.small_mixture import (
    SIZES,
    recipe_of,
    resolved,
)
from tests.data.small_shards import record, write_shards


def test_the_fingerprint_names_what_changed(written: Path, tmp_path: Path) -> None:
    recipe = recipe_of(written)

    def printed(recipe: Recipe) -> dict[str, Any]:
        return json.loads(json.dumps(order_fingerprint(recipe, resolved(recipe))))

    before = printed(recipe)
    assert changes_of_order(before, printed(recipe_of(written))) == {}
    cases: dict[str, Recipe] = {
        "global_batch": recipe_of(written, batch=4),
        "epoch_samples": recipe_of(written, epoch_samples=16),
        "datasets.big.share": recipe_of(written, balance="uniform"),
        "draw": recipe_of(written, draw="batch"),
        "prompts": recipe_of(written, prompts="plain"),
        "augmentation": recipe_of(written, augmentation="resize"),
        "seed": recipe.model_copy(update={"seed": 4}),
    }
    for key, other in cases.items():
        assert key in changes_of_order(before, printed(other)), key
    gone = changes_of_order(before, printed(recipe_of(written, {"dataset": "big"})))
    assert gone["datasets.small.samples"] == "is gone (was 9)"
    back = changes_of_order(printed(recipe_of(written, {"dataset": "big"})), before)
    assert back["datasets.small.samples"] == "is new (9)"
    for name in SIZES:
        shutil.copytree(written / name, tmp_path / name)
    shutil.rmtree(tmp_path / "one")
    write_shards(tmp_path / "one", "one", 1, make=lambda name, number: record(name, 5))
    changes = changes_of_order(before, printed(recipe_of(tmp_path)))
    assert list(changes) == ["datasets.one.shards"]


def test_changes_accepted_by_name() -> None:
    changes = {"seed": "was 1, is 2", "datasets.a.share": "x", "datasets.a.draws.all": "y"}
    assert changes_not_accepted(changes, True) == {}
    assert changes_not_accepted(changes, False) == changes
    assert changes_not_accepted(changes, ["datasets.a"]) == {"seed": "was 1, is 2"}
    assert list(changes_not_accepted(changes, ["seed", "datasets.a.sh"])) == list(changes)[1:]
