"""Which process this is, and how what one of them meets becomes what all of them do.

A rank that ends alone leaves the others in a collective, where they wait or fail of a closed
connection. So what may be refused is tried on every rank or on the first, the outcome is exchanged,
and the same error is raised on all: every process ends with the same exit code, and one tells why.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ibtrain.distributed.launchers import Ranks as Ranks  # noqa: PLC0414  (used with the rest)

_T = TypeVar("_T")
# What crosses from rank to rank is a kind and a message: not every error can be pickled.
_KINDS = (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, OSError, RuntimeError)
_SHARED = "raised_on_every_rank"


@dataclass(frozen=True)
class _Failure:
    rank: int
    kind: int
    message: str
    host: str


def on_every_rank(ranks: Ranks, action: Callable[[], _T]) -> _T:
    """Runs `action` on every rank and gives each its own result, or raises on all what the first
    rank that failed has met. Called by every rank.

    Raises:
        ValueError, OSError, RuntimeError: what `action` raised here or elsewhere.
    """
    result, error = _tried(action)
    failures: list[_Failure | None] = [_failure(ranks, error)]
    if ranks.world > 1:
        failures = [None] * ranks.world
        torch.distributed.all_gather_object(failures, _failure(ranks, error))
    _raise_first(failures, error)
    return result[0]


def on_rank_zero(ranks: Ranks, action: Callable[[], _T]) -> _T:
    """Runs `action` on rank 0 and gives its result to all; its error is raised on all.

    Raises:
        ValueError, OSError, RuntimeError: what `action` raised.
    """
    result, error = _tried(action) if ranks.rank == 0 else ([], None)
    outcome: list[Any] = [result, _failure(ranks, error)]
    if ranks.world > 1:
        torch.distributed.broadcast_object_list(outcome, src=0)
    _raise_first([outcome[1]], error)
    first: _T = outcome[0][0]
    return first


def on_rank_zero_only(ranks: Ranks, make: Callable[[], _T]) -> _T | None:
    """Makes an object on rank 0 that the others do not get; its error is raised on all.

    Raises:
        ValueError, OSError, RuntimeError: what `make` raised.
    """
    kept: list[_T] = []
    on_rank_zero(ranks, lambda: kept.append(make()))
    return kept[0] if kept else None


@contextmanager
def alike_on_every_rank() -> Iterator[None]:
    """Around what raises on all ranks or on none, since all decide by the same figures."""
    try:
        yield
    except _KINDS as error:
        raise _shared(error) from error.__cause__


def is_shared(error: BaseException) -> bool:
    """Whether every rank has raised this error, so that one of them is enough to tell of it."""
    return bool(vars(error).get(_SHARED, False))


def _shared(error: Exception) -> Exception:
    vars(error)[_SHARED] = True
    return error


def _tried(action: Callable[[], _T]) -> tuple[list[_T], Exception | None]:
    try:
        return [action()], None
    except _KINDS as error:
        return [], error


def _failure(ranks: Ranks, error: Exception | None) -> _Failure | None:
    if error is None:
        return None
    kind = next(number for number, kind in enumerate(_KINDS) if isinstance(error, kind))
    return _Failure(ranks.rank, kind, str(error), socket.gethostname())


def _raise_first(failures: list[_Failure | None], own: Exception | None) -> None:
    """Raises what the lowest rank met that met anything."""
    first = next((failure for failure in failures if failure is not None), None)
    if first is None:
        return
    if own is not None and str(own) == first.message:
        raise _shared(own)
    where = f"rank {first.rank} on {first.host}: " if first.rank else ""
    raise _shared(_KINDS[first.kind](where + first.message))
