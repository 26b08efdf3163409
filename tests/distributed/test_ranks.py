"""What one rank meets is what all of them do."""

import json
import re
import socket
from pathlib import Path

import pytest

from ibtrain.distributed.ranks import (
    Ranks,
    alike_on_every_rank,
    is_shared,
    on_every_rank,
    on_rank_zero,
    on_rank_zero_only,
)
from tests.distributed.conftest import Zygote

ALONE = Ranks(rank=0, world=1, local_rank=0, local_world=1)


def test_outcomes_are_exchanged(zygote: Zygote, tmp_path: Path) -> None:
    zygote.run(3, "tests.distributed.jobs:outcomes", str(tmp_path / "met"))
    for rank in range(3):
        own, first_alone, kind, message = json.loads((tmp_path / f"met.{rank}").read_text())
        assert (own, first_alone) == (rank, 0 if rank == 0 else None)
        assert kind == "FileNotFoundError"
        where = "" if rank == 1 else f"rank 1 on {socket.gethostname()}: "
        assert message == f"{where}no such shard"


@pytest.mark.parametrize("exchange", [on_every_rank, on_rank_zero, on_rank_zero_only])
def test_alone_a_result_is_ones_own(exchange) -> None:
    assert exchange(ALONE, lambda: "result") == "result"


class OwnError(FileExistsError):
    """Derived from one of the kinds that cross from rank to rank."""


@pytest.mark.parametrize("exchange", [on_every_rank, on_rank_zero, on_rank_zero_only])
@pytest.mark.parametrize("error", [ValueError("wrong"), OwnError("there"), RuntimeError("lost")])
def test_alone_the_error_itself_is_raised_and_marked(exchange, error) -> None:
    def fail() -> None:
        raise error

    assert not is_shared(error)
    with pytest.raises(type(error), match=re.escape(str(error))) as raised:
        exchange(ALONE, fail)
    assert raised.value is error
    assert is_shared(error)
    del error.raised_on_every_rank


def test_a_fault_of_the_program_stays_where_it_is() -> None:
    """What is no refusal does not cross: its traceback belongs to the rank that met it."""

    def fail() -> None:
        raise TypeError("a fault")

    with pytest.raises(TypeError) as raised:
        on_every_rank(ALONE, fail)
    assert not is_shared(raised.value)


def test_what_all_decide_alike_is_marked_and_keeps_its_cause() -> None:
    cause = KeyError("loss")
    with pytest.raises(RuntimeError, match="the loss is no number") as raised:  # noqa: SIM117
        with alike_on_every_rank():
            raise RuntimeError("the loss is no number") from cause
    assert is_shared(raised.value)
    assert raised.value.__cause__ is cause
