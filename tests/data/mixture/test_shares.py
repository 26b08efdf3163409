"""Shares of datasets and of their forms, by hand and as they are drawn."""

from collections import Counter
from pathlib import Path

import pytest

from tests.data.mixture.small_mixture import FORMS, batches, copied, recipe_of, resolved


@pytest.mark.parametrize(
    ("balance", "weights"),
    [("sqrt", [40**0.5, 3.0, 1.0]), ("proportional", [40, 9, 1]), ("uniform", [1, 1, 1])],
)
def test_shares_by_hand(written: Path, balance: str, weights: list[float]) -> None:
    mixture = resolved(recipe_of(written, balance=balance, epoch_samples=205))
    assert mixture.epoch_samples == 200
    assert [dataset.weight for dataset in mixture.datasets] == pytest.approx(weights)
    for dataset, weight in zip(mixture.datasets, weights, strict=True):
        assert dataset.share == pytest.approx(weight / sum(weights))
        assert dataset.samples_per_epoch == pytest.approx(200 * weight / sum(weights))
        assert abs(dataset.draws - dataset.samples_per_epoch) < 1
    assert sum(dataset.draws for dataset in mixture.datasets) == 200


def test_factors(written: Path) -> None:
    entries = [{"dataset": "big"}, {"dataset": "small", "factor": 2.5}]
    mixture = resolved(recipe_of(written, *entries))
    assert [one.weight for one in mixture.datasets] == pytest.approx([40**0.5, 7.5])


def test_a_form_can_be_lowered_or_left_out(written: Path) -> None:
    weight = 30**0.5
    entry = {"dataset": "formed", "forms": {"multiple_choice": 0.5}}
    lowered = resolved(recipe_of(written, entry, {"dataset": "big"})).datasets[0]
    by_form = {stratum.form: stratum for stratum in lowered.strata}
    assert {form: stratum.size for form, stratum in by_form.items()} == dict(
        zip(FORMS, (20, 10), strict=True)
    )
    assert by_form["visual_question_answering"].weight == pytest.approx(weight * 20 / 30)
    assert by_form["multiple_choice"].weight == pytest.approx(weight * 10 / 30 / 2)
    assert lowered.weight == pytest.approx(weight * 25 / 30)
    entry["forms"] = {"multiple_choice": 0}
    recipe = recipe_of(written, entry, {"dataset": "one"}, epoch_samples=80)
    found = batches(recipe, 10)
    ids = [int(id) for batch in found for name, id in batch[:-1] if name == "formed"]
    assert set(ids) == {number for number in range(30) if number % 3}


def test_realised_shares_of_forms(written: Path) -> None:
    entry = {"dataset": "formed", "forms": {"multiple_choice": 0.3}, "factor": 2.0}
    recipe = recipe_of(written, entry, {"dataset": "big"}, epoch_samples=160)
    mixture = resolved(recipe)
    drawn: Counter[str] = Counter()
    for batch in batches(recipe, 20):
        drawn.update(
            f"formed/{FORMS[int(id) % 3 == 0]}" if name == "formed" else name
            for name, id in batch[:-1]
        )
    total = sum(stratum.weight for _, stratum in mixture.strata())
    assert abs(drawn["big"] - 160 * mixture.datasets[1].share) < 1
    for stratum in mixture.datasets[0].strata:
        assert drawn[stratum.name] == stratum.draws
        assert abs(stratum.draws - 160 * stratum.weight / total) < 2


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"forms": {"multiple": 0.5}}, "the form 'multiple' of formed, .*multiple_choice, visual"),
        ({"forms": dict.fromkeys(FORMS, 0)}, "leaves every form of formed out"),
    ],
)
def test_forms_that_are_not_there(written: Path, entry: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        resolved(recipe_of(written, {"dataset": "formed"} | entry))


def test_forms_in_a_bad_shard(written: Path, tmp_path: Path) -> None:
    directory = copied(written, tmp_path)
    shard = directory / "formed/shard.00002.mds.zstd"
    shard.write_bytes(bytes(shard.stat().st_size))
    recipe = recipe_of(directory, {"dataset": "formed", "forms": {"multiple_choice": 0.5}})
    with pytest.raises(ValueError, match=r"forms of formed .*shard\.00002.* --repair-from DIR"):
        resolved(recipe)


def test_an_epoch_below_a_batch_is_refused(written: Path) -> None:
    with pytest.raises(ValueError, match="an epoch of 7 samples is smaller than one global batch"):
        resolved(recipe_of(written, epoch_samples=7))


def test_realised_shares_in_every_epoch(written: Path) -> None:
    recipe = recipe_of(written, epoch_samples=128)
    mixture = resolved(recipe)
    found = batches(recipe, 48)
    for epoch in range(3):
        drawn = Counter(name for b in found[16 * epoch : 16 * epoch + 16] for name, _ in b[:-1])
        for dataset in mixture.datasets:
            assert drawn[dataset.name] == dataset.draws
            assert abs(drawn[dataset.name] - 128 * dataset.share) < 1


def test_a_name_in_the_mixture_may_differ_from_the_records(written: Path) -> None:
    entry = {"dataset": "renamed", "path": str(written / "small")}
    found = batches(recipe_of(written, entry, batch=4), 2)
    assert {name for batch in found for name, _ in batch[:-1]} == {"renamed"}
