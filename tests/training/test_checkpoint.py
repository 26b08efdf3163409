import errno
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ibtrain.distributed.ranks import Ranks
from ibtrain.run_directory import latest_step, verify_step, whole_steps
from ibtrain.training import checkpoint
from ibtrain.training.checkpoint import save_checkpoint


@pytest.fixture
def engine(monkeypatch):
    """Stands in for an engine of one rank with one trained tensor."""
    tensors = {"weight": torch.ones(2)}
    monkeypatch.setattr(checkpoint, "_collect", lambda _: (tensors, tensors))
    return SimpleNamespace(ranks=Ranks(rank=0, world=1, local_rank=0, local_world=1))


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_newest_are_kept(engine, tmp_path: Path):
    for step in (1, 2, 3):
        assert save_checkpoint(engine, tmp_path, step, {"samples": 8 * step}, keep=2)
    assert [verify_step(step) for step in whole_steps(tmp_path)] == [2, 3]
    state = checkpoint.read_state(latest_step(tmp_path))
    assert state == {"step": 3, "samples": 24}


def test_a_checkpoint_that_cannot_be_written_costs_a_warning(
    engine, tmp_path: Path, monkeypatch, caplog
):
    save_checkpoint(engine, tmp_path, 1, {}, keep=2)
    monkeypatch.setattr(checkpoint, "save_file", no_space)
    with caplog.at_level(logging.WARNING):
        assert not save_checkpoint(engine, tmp_path, 2, {}, keep=2)
    assert "the checkpoint of step 2 could not be written" in caplog.text
    assert verify_step(latest_step(tmp_path)) == 1


def test_older_ones_that_cannot_be_removed_are_no_lost_checkpoint(
    engine, tmp_path: Path, monkeypatch, caplog
):
    save_checkpoint(engine, tmp_path, 1, {}, keep=1)
    monkeypatch.setattr(checkpoint, "prune_steps", no_space)
    with caplog.at_level(logging.WARNING):
        assert save_checkpoint(engine, tmp_path, 2, {}, keep=1)
    assert "could not be written" not in caplog.text
    assert "older checkpoints" in caplog.text
    assert verify_step(latest_step(tmp_path)) == 2


def test_other_errors_are_not_swallowed(engine, tmp_path: Path, monkeypatch):
    def broken(*_: object) -> None:
        raise ValueError("no tensor")

    monkeypatch.setattr(checkpoint, "save_file", broken)
    with pytest.raises(ValueError, match="no tensor"):
        save_checkpoint(engine, tmp_path, 1, {}, keep=1)
    assert whole_steps(tmp_path) == []
