"""Global batches: the same for any ranks and workers, from any step, and a worker that fails."""

import multiprocessing
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from ibtrain.data.mixture.loader import MixtureLoader
from ibtrain.data.mixture.quarantine import BadDataError
from tests.data.mixture.small_mixture import Tokens, batches, recipe_of, resolved


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


def test_whole_batches_of_one_dataset(written: Path) -> None:
    recipe = recipe_of(written, draw="batch", epoch_samples=160)
    found = batches(recipe, 20)
    assert all(len({name for name, _ in batch[:-1]}) == 1 for batch in found)
    drawn = Counter(batch[0][0] for batch in found)
    for dataset in resolved(recipe).datasets:
        assert drawn[dataset.name] * 8 == dataset.draws
        assert abs(dataset.draws - dataset.samples_per_epoch) < 8


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
