import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import torch

from ibtrain.data.mixture.worker_processes import ProcessDiedError, ReadingProcesses


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    before = set(multiprocessing.active_children())
    yield
    assert not set(multiprocessing.active_children()) - before


def same(answer: Any) -> Any:
    return answer


def work(request: Any) -> Any:
    match request:
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "sleep":
            time.sleep(60)
        case "fail":
            raise KeyError("what was asked for")
        case "process":
            return os.getpid()
        case int():
            return {"number": request, "rows": torch.full((request, 3), request)}
    return request


def test_answers_come_in_the_order_of_the_requests() -> None:
    for count in (1, 2, 3):
        processes = ReadingProcesses(count, work, same)
        for number in range(5):
            processes.ask(number)
        for number in range(12):
            answer = processes.next(60)
            processes.ask(number + 5)
            assert answer["number"] == number
            assert torch.equal(answer["rows"], torch.full((number, 3), number))
            answer["rows"] += 1  # the memory is the receiver's own
        processes.close()


def test_every_kind_of_tensor_arrives_whole() -> None:
    sent = [
        torch.randn(3, 5),
        torch.arange(12).view(3, 4).t(),  # not contiguous
        torch.zeros(0, 3, 8, 8),
        torch.tensor(7, dtype=torch.int32),
        torch.randn(700, 1000),  # more than any buffer on the way
        torch.tensor([True, False]),
    ]
    processes = ReadingProcesses(1, same, same)
    processes.ask(("text", sent, None))
    text, received, nothing = processes.next(60)
    processes.close()
    assert (text, nothing) == ("text", None)
    for before, after in zip(sent, received, strict=True):
        assert before.dtype == after.dtype and torch.equal(before, after)


def test_answers_are_received_ahead_of_their_use() -> None:
    received = []
    processes = ReadingProcesses(2, work, received.append)
    for number in range(4):
        processes.ask(number)
    end = time.monotonic() + 60
    while len(received) < 4:
        assert time.monotonic() < end
        time.sleep(0.01)
    processes.close()


def test_a_process_that_dies() -> None:
    processes = ReadingProcesses(2, work, same)
    for request in (1, "die", 3):
        processes.ask(request)
    assert processes.next(60)["number"] == 1
    with pytest.raises(ProcessDiedError, match="exit code -9"):
        processes.next(60)
    processes.close()


@pytest.mark.parametrize("request_", ["stop", "sleep"])
def test_a_process_that_stands_still(request_: str) -> None:
    processes = ReadingProcesses(2, work, same)
    for request in (1, request_):
        processes.ask(request)
    assert processes.next(60)["number"] == 1
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        processes.next(1.0)
    processes.close()
    assert time.monotonic() - begun < 30


def test_a_process_that_is_stopped_in_the_middle_of_its_answer() -> None:
    """The answer is larger than what a socket holds; only the thread waits for the rest."""
    processes = ReadingProcesses(1, work, same)
    processes.ask("process")
    process = processes.next(60)
    for _ in range(2):
        processes.ask(3_000_000)
    time.sleep(0.05)
    os.kill(process, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        for _ in range(2):
            processes.next(2.0)
    processes.close()


def test_an_exception_comes_with_its_traceback() -> None:
    processes = ReadingProcesses(1, work, same)
    processes.ask("fail")
    with pytest.raises(RuntimeError, match=r"Traceback(.|\n)*KeyError: 'what was asked for'"):
        processes.next(60)
    processes.close()


PARENT = """
import json, os, signal, sys
from ibtrain.data.mixture.worker_processes import ReadingProcesses
from tests.data.mixture.test_worker_processes import same, work

processes = ReadingProcesses(3, work, same)
for _ in range(3):
    processes.ask("process")
print(json.dumps([processes.next(60) for _ in range(3)]), flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_exception_where_answers_are_received() -> None:
    processes = ReadingProcesses(1, work, lambda answer: answer["absent"])
    processes.ask(1)
    with pytest.raises(RuntimeError, match=r"Traceback(.|\n)*KeyError: 'absent'"):
        processes.next(60)
    processes.close()


@pytest.mark.parametrize(("way", "code"), [("exits", 0), ("killed", -signal.SIGKILL)])
def test_they_end_with_the_process_that_started_them(way: str, code: int) -> None:
    parent = subprocess.run(
        [sys.executable, "-c", PARENT, way], stdout=subprocess.PIPE, timeout=120
    )
    assert parent.returncode == code
    end = time.monotonic() + 20
    while any(psutil.pid_exists(pid) for pid in json.loads(parent.stdout)):
        assert time.monotonic() < end, "a process lives on"
        time.sleep(0.05)


def test_signals_to_a_job_do_not_reach_them() -> None:
    processes = ReadingProcesses(1, work, same)
    processes.ask("process")
    process = processes.next(60)
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(process, number)
    processes.ask(2)
    assert processes.next(60)["number"] == 2
    processes.close()
