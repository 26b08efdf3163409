import json
import multiprocessing
import os
import shutil
import signal
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from ibtrain.config import Recipe
from ibtrain.data.mixture import order, sampling
from ibtrain.data.mixture.fingerprint import (
    changes_not_accepted,
    changes_of_order,
    order_fingerprint,
)
from ibtrain.data.mixture.loader import MixtureLoader
from ibtrain.data.mixture.quarantine import BadDataError, Incident, Ledger
from ibtrain.data.mixture.reader import MixtureReader
from ibtrain.data.mixture.sampling import augmentation_for, draw_sample
from ibtrain.data.mixture.shares import Mixture, resolve_mixture
from ibtrain.data.records import Answer, Record
from ibtrain.tokenization import InstructionTokens
from tests.data.small_shards import picture, record, write_shards

SIZES = {"big": 40, "small": 9, "one": 1}
FORMS = ("visual_question_answering", "multiple_choice")


def with_forms(dataset: str, number: int) -> Record:
    return record(dataset, number, FORMS[number % 3 == 0])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three datasets and one of two forms (20 and 10 records); do not write into it."""
    directory = tmp_path_factory.mktemp("mixture")
    for name, size in SIZES.items():
        write_shards(directory / name, name, size, per_shard=6, compressed=name != "small")
    write_shards(directory / "formed", "formed", 30, per_shard=4, make=with_forms)
    return directory


def recipe_of(directory: Path, *entries: dict[str, Any], batch: int = 8, **data: Any) -> Recipe:
    listed = entries or tuple({"dataset": name} for name in SIZES)
    mixture = [{"path": str(directory / entry["dataset"])} | entry for entry in listed]
    values = {"mixture": mixture, "image_size": 8, "workers": 0, "cache": directory / "cache"}
    return Recipe.model_validate(
        {
            "name": "small",
            "output": directory / "run",
            "seed": 3,
            "model": {"base": "nowhere"},
            "data": values | data,
            "training": {"steps": 9, "global_batch": batch, "micro_batch": 3},
        }
    )


def resolved(recipe: Recipe) -> Mixture:
    return resolve_mixture(recipe.data, recipe.training.global_batch)


class Tokens:
    end_id = 2

    def instruction(self, text: str) -> InstructionTokens:
        return InstructionTokens(qformer=(1, 2), language=(3, *text.encode()))

    def answer(self, text: str) -> tuple[int, ...]:
        return (*text.encode(), 2)


def batches(recipe: Recipe, steps: int, first: int = 0, world: int = 1) -> list[list[tuple]]:
    """Every global batch: dataset, id and a digest of what the model is fed, rank after rank."""
    mixture = resolved(recipe)
    loaders = [
        MixtureLoader(
            recipe,
            mixture,
            Tokens(),
            2,
            rank=rank,
            world=world,
            cache=recipe.data.cache,
            first_step=first,
        )
        for rank in range(world)
    ]
    found = []
    for shares in islice(zip(*map(iter, loaders), strict=True), steps):
        micro_batches = [batch for share in shares for batch in share]
        names = [pair for b in micro_batches for pair in zip(b.datasets, b.sample_ids, strict=True)]
        assert len(names) == recipe.training.global_batch
        pixels = torch.cat([batch.pixels_ICHW for batch in micro_batches])
        tokens = torch.cat([batch.answer_ids_A for batch in micro_batches])
        prompts = torch.cat([batch.token_ids_T for batch in micro_batches])
        digest = (pixels.double().sum().item(), tokens.tolist(), prompts.tolist())
        found.append([*names, digest])
    for loader in loaders:
        loader.close()
    return found


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
    by_form = {part.form: part for part in lowered.parts}
    assert {form: part.size for form, part in by_form.items()} == dict(
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
    total = sum(part.weight for _, part in mixture.parts())
    assert abs(drawn["big"] - 160 * mixture.datasets[1].share) < 1
    for part in mixture.datasets[0].parts:
        assert drawn[part.name] == part.draws
        assert abs(part.draws - 160 * part.weight / total) < 2


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


def test_the_same_sequence_for_any_ranks_and_workers(written: Path) -> None:
    """Two epochs and a bit: 50 samples, 6 steps of 8 in each."""
    recipe = recipe_of(written)
    alone = batches(recipe, 14)
    for world in (2, 4):
        assert batches(recipe, 14, world=world) == alone
    with_workers = recipe_of(written, workers=2)
    assert batches(with_workers, 14) == alone


@pytest.mark.parametrize("first", [1, 5, 6, 7, 11, 12, 13])
def test_going_on_from_any_step(written: Path, first: int) -> None:
    recipe = recipe_of(written)
    assert batches(recipe, 14 - first, first) == batches(recipe, 14)[first:]


def test_realised_shares_in_every_epoch(written: Path) -> None:
    recipe = recipe_of(written, epoch_samples=128)
    mixture = resolved(recipe)
    found = batches(recipe, 48)
    for epoch in range(3):
        drawn = Counter(name for b in found[16 * epoch : 16 * epoch + 16] for name, _ in b[:-1])
        for dataset in mixture.datasets:
            assert drawn[dataset.name] == dataset.draws
            assert abs(drawn[dataset.name] - 128 * dataset.share) < 1


def test_whole_batches_of_one_dataset(written: Path) -> None:
    recipe = recipe_of(written, draw="batch", epoch_samples=160)
    found = batches(recipe, 20)
    assert all(len({name for name, _ in batch[:-1]}) == 1 for batch in found)
    drawn = Counter(batch[0][0] for batch in found)
    for dataset in resolved(recipe).datasets:
        assert drawn[dataset.name] * 8 == dataset.draws
        assert abs(dataset.draws - dataset.samples_per_epoch) < 8


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


def example(**values: Any) -> Record:
    known = {
        "dataset": "vqav2",
        "task": "image_question_answering",
        "id": "7",
        "images": (picture((1, 2, 3)),),
        "instructions": ("What is it?", "Name it:", "Say what it is."),
        "answers": (Answer("net", 3.0), Answer("mesh", 1.0)),
        "plain": "What is it?",
    }
    return Record(**(known | values))


@pytest.mark.parametrize(
    ("values", "instruction", "answer", "expected"),
    [
        ({}, "What is it?", "a cat", "crop_flip"),
        ({}, "What is on the left?", "a cat", "crop"),
        ({}, "Where is it?", "RIGHT", "crop"),
        ({}, "Is it the leftmost one?", "no", "crop"),
        ({}, "Is it at the right-hand side?", "no", "crop"),
        ({}, "a right-handed pitcher", "x", "crop"),
        ({}, "What is bright and upright?", "leftovers in copyright", "crop_flip"),
        ({"task": "captioning_with_reading"}, "What is it?", "a cat", "resize"),
        ({"details": {"ocr_tokens": ["STOP"]}}, "What is it?", "a cat", "resize"),
        ({"details": {"ocr_tokens": []}}, "What is it?", "a cat", "crop_flip"),
    ],
)
def test_augmentation_leaves_the_text_true(
    values: dict, instruction: str, answer: str, expected: str
) -> None:
    strength = ("resize", "crop", "crop_flip")
    for most in strength:
        wanted = min(most, expected, key=strength.index)
        assert augmentation_for(example(**values), instruction, answer, most) == wanted


def test_the_policy_reaches_the_image(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        sampling,
        "open_pixels",
        lambda data, size, augmentation, random: asked.append(augmentation) or torch.zeros(3, 8, 8),
    )
    recipe = recipe_of(written)
    draw_sample(example(instructions=("Left?",)), recipe, 0)
    draw_sample(example(task="question_answering_with_reading"), recipe, 0)
    draw_sample(example(), recipe, 0)
    assert asked == ["crop", "resize", "crop_flip"]


def test_frames_are_varied_alike(written: Path) -> None:
    frame = picture((9, 200, 30), (40, 30))
    sample = draw_sample(example(images=(frame,) * 3), recipe_of(written), 1)
    assert sample.pixels_ICHW.shape == (3, 3, 8, 8)
    assert (sample.pixels_ICHW == sample.pixels_ICHW[0]).all()
    assert draw_sample(example(images=()), recipe_of(written), 1).pixels_ICHW.shape[0] == 0


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("plain", {"What is it?"}),
        ("identifier", {"[image_question_answering: vqav2] What is it?"}),
        ("instructions", {"What is it?", "Name it:", "Say what it is."}),
    ],
)
def test_prompts(written: Path, prompts: str, expected: set[str]) -> None:
    recipe = recipe_of(written, prompts=prompts)
    assert {draw_sample(example(), recipe, epoch).instruction for epoch in range(40)} == expected
    if prompts == "identifier":
        bare = draw_sample(example(plain="", task="captioning"), recipe, 0)
        assert bare.instruction == "[captioning: vqav2]"


def test_a_draw_is_by_seed_epoch_id_and_repeat(written: Path) -> None:
    recipe = recipe_of(written)
    many = example(instructions=tuple(map(str, range(10**4))))

    def drawn(one: Record = many, epoch: int = 0, repeat: int = 0, seed: int = 3) -> str:
        return draw_sample(one, recipe.model_copy(update={"seed": seed}), epoch, repeat).instruction

    others = [
        drawn(epoch=1),
        drawn(repeat=1),
        drawn(repeat=2),
        drawn(seed=4),
        drawn(example(instructions=many.instructions, id="8")),
        drawn(example(instructions=many.instructions, dataset="okvqa")),
    ]
    assert drawn() == drawn()
    assert len({drawn(), *others}) == 7


def test_answers_by_weight(written: Path) -> None:
    recipe = recipe_of(written)
    drawn = Counter(draw_sample(example(), recipe, epoch).answer for epoch in range(2000))
    assert abs(drawn["net"] / 2000 - 0.75) < 0.04  # four standard deviations
    with pytest.raises(ValueError, match="vqav2 7: no answer to train on"):
        draw_sample(example(answers=()), recipe, 0)


def copied(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy", ignore=shutil.ignore_patterns("cache")))


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
    found = order.epoch_order(mixture.order_parts(), 0, seed=3, global_batch=10)
    from ibtrain.data.mixture.reader import Draw

    rows = zip(found.part.ravel(), found.number.ravel(), found.repeat.ravel(), strict=True)
    for place, (part, number, repeat) in enumerate(rows):
        sample = reader.sample(Draw(0, place, int(part), int(number), int(repeat)))
        assert int(sample.id) not in range(8, 12)
        assert FORMS[int(sample.id) % 3 == 0] == mixture.parts()[part][1].form
    kinds = Counter(incident.kind for incident in reader.take_incidents())
    assert kinds["shard"] == 1 and kinds["replaced"] >= 1


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


def test_a_worker_that_dies(written: Path) -> None:
    """It is told of where the batch is waited for, and nowhere else; then no worker is left."""
    recipe = recipe_of(written, workers=1, worker_timeout=2)
    loader = MixtureLoader(
        recipe, resolved(recipe), Tokens(), 2, rank=0, world=1, cache=written / "cache"
    )
    before = set(multiprocessing.active_children())
    shares = iter(loader)
    next(shares)
    (worker,) = set(multiprocessing.active_children()) - before
    os.kill(worker.pid, signal.SIGKILL)
    time.sleep(0.5)  # the death of a child interrupts what this process does, and must not end it
    with pytest.raises(BadDataError, match="a process that reads data died"):
        for _ in range(20):
            next(shares)
    loader.close()
    assert not set(multiprocessing.active_children()) - before


def test_a_worker_that_stands_still(written: Path) -> None:
    """Stopped, or in a read that does not return: the same for who waits."""
    recipe = recipe_of(written, workers=2, worker_timeout=2)
    loader = MixtureLoader(
        recipe, resolved(recipe), Tokens(), 2, rank=0, world=1, cache=written / "cache"
    )
    before = set(multiprocessing.active_children())
    shares = iter(loader)
    next(shares)
    for worker in set(multiprocessing.active_children()) - before:
        os.kill(worker.pid, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(BadDataError, match=r"no batch came within 2 seconds: .*worker_timeout"):
        for _ in range(20):
            next(shares)
    loader.close()
    assert time.monotonic() - started < 60
    assert not set(multiprocessing.active_children()) - before


def test_a_name_in_the_mixture_may_differ_from_the_records(written: Path) -> None:
    entry = {"dataset": "renamed", "path": str(written / "small")}
    found = batches(recipe_of(written, entry, batch=4), 2)
    assert {name for batch in found for name, _ in batch[:-1]} == {"renamed"}
