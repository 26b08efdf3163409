"""Locks on files that the kernel releases when their holder ends, however it ends."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class BusyError(RuntimeError):
    """Another process holds the lock."""


@contextmanager
def locked(
    path: Path, *, shared: bool = False, wait_seconds: float | None = None
) -> Iterator[None]:
    """Holds a lock on the file at `path`, which is made where there is none.

    Args:
        path: the file; it stays.
        shared: several may hold it at a time, while nobody holds it alone.
        wait_seconds: how long to wait for others; None waits until they end.

    Raises:
        BusyError: it is still held by another process.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with path.open("a+b") as file:
        deadline = None if wait_seconds is None else time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(file, kind if deadline is None else kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if deadline is not None and time.monotonic() >= deadline:
                    raise BusyError(f"{path} is held by another process") from None
                time.sleep(0.05)
        yield
