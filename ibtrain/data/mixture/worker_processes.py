"""Processes that work ahead of the training process, and never hold it up.

Each one has a socket, and a thread here that waits at it. A process that dies, stands still or is
stopped therefore costs the training process its patience and nothing else. What is sent are plain
bytes: nothing is left in shared memory, and none of it is needed.
"""

import atexit
import io
import multiprocessing
import os
import pickle
import queue
import signal
import socket
import struct
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

import torch

_PATIENCE_SECONDS = 5.0  # how long a process may take to end
_NO_MORE = object()  # instead of a request
_DIED = object()  # instead of an answer


class ProcessDiedError(RuntimeError):
    """A process ended before its answer was there."""


@dataclass(frozen=True)
class _Failure:
    """What a process sends for an exception: its traceback."""

    text: str


class ReadingProcesses:
    """Answers requests in the order they were made, each process every `count`-th.

    Args:
        count: how many processes.
        work: request to answer, run in the processes; both are pickled, tensors without a copy.
        receive: called here, in a thread, with each answer; gives what `next` gives.
    """

    def __init__(
        self, count: int, work: Callable[[Any], Any], receive: Callable[[Any], Any]
    ) -> None:
        self._ends: list[socket.socket] = []
        self._processes: list[BaseProcess] = []
        self._requests: list[queue.SimpleQueue[Any]] = []
        self._answers: list[queue.SimpleQueue[Any]] = []
        self._asked = self._answered = 0
        context = multiprocessing.get_context("fork")  # what the work reads is shared with them
        for _ in range(count):
            here, there = socket.socketpair()
            self._ends.append(here)
            process = context.Process(
                target=_serve, args=(work, there, tuple(self._ends)), daemon=True
            )
            process.start()
            there.close()
            self._processes.append(process)
        # After the last fork: a thread that holds a lock would leave it locked in a child.
        for end in self._ends:
            requests, answers = queue.SimpleQueue[Any](), queue.SimpleQueue[Any]()
            self._requests.append(requests)
            self._answers.append(answers)
            arguments = (end.makefile("rwb"), requests, answers, receive)
            threading.Thread(target=_attend, args=arguments, daemon=True).start()
        atexit.register(self.close)  # or leaving Python would wait for them

    def ask(self, request: Any) -> None:
        """Hands the next process a request; never waits."""
        self._requests[self._asked % len(self._requests)].put(request)
        self._asked += 1

    def next(self, timeout: float) -> Any:
        """The answer to the oldest request.

        Raises:
            TimeoutError: it did not come within `timeout` seconds.
            ProcessDiedError: the process ended before it.
            RuntimeError: the work or `receive` raised an exception; it carries the traceback.
        """
        number = self._answered % len(self._answers)
        try:
            answer = self._answers[number].get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        if answer is _DIED:
            process = self._processes[number]
            process.join(_PATIENCE_SECONDS)
            raise ProcessDiedError(f"exit code {process.exitcode}")
        if isinstance(answer, _Failure):
            raise RuntimeError(f"while data was read ahead:\n{answer.text}")
        self._answered += 1
        return answer

    def close(self) -> None:
        """Ends the processes: by themselves after what they are at, or killed if it takes long."""
        atexit.unregister(self.close)
        for end, requests in zip(self._ends, self._requests, strict=True):
            end.shutdown(socket.SHUT_RDWR)  # both sides read an end of file
            requests.put(_NO_MORE)
        patience = time.monotonic() + _PATIENCE_SECONDS
        for process in self._processes:
            process.join(max(0.0, patience - time.monotonic()))
        for process in self._processes:
            process.kill()  # it stands still, in a read that does not return for example
            process.join()
        for end in self._ends:
            end.close()
        self._ends, self._processes, self._requests = [], [], []


def _attend(
    stream: io.BufferedRWPair,
    requests: "queue.SimpleQueue[Any]",
    answers: "queue.SimpleQueue[Any]",
    receive: Callable[[Any], Any],
) -> None:
    """The thread of one process: request there, answer back, until either side ends."""
    try:
        with stream:
            while (request := requests.get()) is not _NO_MORE:
                _send(stream, request)
                answer = _receive(stream)
                answers.put(answer if isinstance(answer, _Failure) else receive(answer))
    except (OSError, EOFError):
        answers.put(_DIED)
    except Exception:  # noqa: BLE001  (raised again by who asks; a thread that ends tells nobody)
        answers.put(_Failure(traceback.format_exc()))


def _serve(
    work: Callable[[Any], Any], there: socket.socket, ends_here: tuple[socket.socket, ...]
) -> None:
    """A process's life: it ends with the training process, however that ends."""
    # A scheduler signals every process of a job; the one that trains decides when to stop.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    torch.set_num_threads(1)  # the processes share the cores
    for end in ends_here:
        end.close()  # or they would be held open after the training process is gone
    with there, there.makefile("rwb") as stream:
        try:
            while True:
                request = _receive(stream)
                try:
                    answer = work(request)
                except Exception:  # noqa: BLE001  (raised again by the training process)
                    answer = _Failure(traceback.format_exc())
                _send(stream, answer)
        except (OSError, EOFError):
            os._exit(0)  # nobody listens any more, and nobody's buffers need to be written


class _Pickler(pickle.Pickler):
    """Tensors as NumPy arrays, whose memory pickle hands out as it is."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented


def _send(stream: io.BufferedRWPair, message: Any) -> None:
    """Number of pieces, their sizes, then the pieces: the pickle and the arrays it refers to."""
    pickled = io.BytesIO()
    arrays: list[pickle.PickleBuffer] = []
    _Pickler(pickled, protocol=5, buffer_callback=arrays.append).dump(message)
    pieces = [pickled.getbuffer(), *(array.raw() for array in arrays)]
    sizes = [piece.nbytes for piece in pieces]
    stream.write(struct.pack(f"<{1 + len(sizes)}Q", len(sizes), *sizes))
    for piece in pieces:
        stream.write(piece)
    stream.flush()


def _receive(stream: io.BufferedRWPair) -> Any:
    """The message of `_send`; EOFError when the other side is gone before its end."""
    (count,) = struct.unpack("<Q", _read(stream, 8))
    sizes = struct.unpack(f"<{count}Q", _read(stream, 8 * count))
    pickled, *arrays = (_read(stream, size) for size in sizes)
    return pickle.loads(pickled, buffers=arrays)


def _read(stream: io.BufferedRWPair, size: int) -> bytearray:
    piece = bytearray(size)
    if stream.readinto(piece) != size:
        raise EOFError
    return piece
