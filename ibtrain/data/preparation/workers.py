"""Processes that work side by side and end with the one that started them, however it ends."""

import os
import signal
import threading
from collections.abc import Callable
from multiprocessing import connection, get_context, parent_process
from typing import Any

import torch

Report = Callable[[int], object]


def run_beside(
    count: int,
    work: Callable[..., None],
    arguments: tuple[Any, ...],
    on_report: Callable[[int], object],
) -> None:
    """Runs `work(report, *arguments)` in `count` new processes until all of them are done.

    Args:
        count: how many.
        work: a function of a module; it may call `report(number)` as often as it likes.
        arguments: the same for each.
        on_report: called here with each number reported.

    Raises:
        RuntimeError: a process was killed.
        Exception: whatever the first one that failed raised; the others are then ended.
    """
    context = get_context("spawn")
    processes = {}
    try:
        for _ in range(count):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(sender, work, arguments), daemon=True)
            process.start()
            sender.close()
            processes[receiver] = process
        waiting = set(processes)
        while waiting:
            for ready in connection.wait(waiting):
                assert isinstance(ready, connection.Connection)
                try:
                    message = ready.recv()
                except EOFError:
                    processes[ready].join()
                    raise RuntimeError(
                        "a process of the conversion was killed (exit code "
                        f"{processes[ready].exitcode}), perhaps for want of memory; run the same "
                        "command again, finished chunks are kept"
                    ) from None
                if isinstance(message, BaseException):
                    raise message
                if message is None:
                    waiting.remove(ready)
                else:
                    on_report(message)
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.join()


def _run(sender: Any, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears of it and ends this process
    torch.set_num_threads(1)  # the processes share the cores
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(sender.send, *arguments)
        sender.send(None)
    except Exception as error:  # noqa: BLE001  (raised again by the parent)
        sender.send(error)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
