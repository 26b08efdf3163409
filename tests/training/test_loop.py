"""What a run refuses to go on from; the rest of the loop is tested in processes (distributed/)."""

from pathlib import Path

import pytest

from ibtrain.run_directory import RunDirectoryError
from ibtrain.training.resume import _check_model
from tests.tiny_run import tiny_recipe

LORA = {"rank": 4, "alpha": 8, "targets": ["q_proj"]}


def recipe(**lora):
    parts = {"language": "lora"}
    return tiny_recipe(Path("run"), base=Path("base"), train_parts=parts, lora=LORA | lora)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"alpha": 32},
            r"step was trained with model\.lora\.alpha=8\.0, and the recipe says 32\.0",
        ),
        ({"rank": 8}, r"step was trained with model\.lora\.rank=4, and the recipe says 8"),
    ],
)
def test_adapters_that_would_compute_something_else(changes, said):
    then = recipe().model.model_dump(mode="json")
    with pytest.raises(RunDirectoryError, match=said):
        _check_model(Path("step"), then, recipe(**changes))


def test_what_may_change():
    _check_model(Path("step"), recipe().model.model_dump(mode="json"), recipe(dropout=0.3))
    _check_model(Path("step"), {}, recipe())
