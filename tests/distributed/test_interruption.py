import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from ibtrain.distributed.interruption import SIGNALS, Interruption


@pytest.fixture
def interruption():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    noted = Interruption()
    yield noted
    noted.restore()
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def test_nothing_is_requested_at_first(interruption):
    assert interruption.requested is None


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_is_noted_by_name(interruption, name):
    os.kill(os.getpid(), getattr(signal, name))
    assert interruption.requested == name


def test_a_second_interrupt_stops_at_once(interruption):
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_after_a_termination_stops_at_once(interruption):
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_second_termination_changes_nothing(interruption):
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert interruption.requested in ("SIGUSR1", "SIGTERM")


CHILD = """
import os, sys, time
from ibtrain.distributed.interruption import Interruption
noted = Interruption()
print("ready", flush=True)
end = time.monotonic() + 20
while noted.requested is None and time.monotonic() < end:
    time.sleep(0.02)
print(noted.requested, flush=True)
"""
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=sys.stdout)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("parent", "launched", "said"),
    [
        ([sys.executable, "-c", PARENT, CHILD], {"RANK": "0"}, "the launcher ended"),
        # A shell that started it may go: that is how one logs out.
        (["bash", "-c", f"{sys.executable} -c '{CHILD}' & sleep 60"], {"RANK": "0"}, "SIGTERM"),
        ([sys.executable, "-c", PARENT, CHILD], {}, "SIGTERM"),  # no launcher
    ],
)
def test_a_launcher_that_is_gone_is_an_interruption(parent, launched, said):
    started = subprocess.Popen(parent, stdout=subprocess.PIPE, text=True, env=os.environ | launched)
    assert started.stdout.readline() == "ready\n"
    (child,) = [one for one in psutil.Process(started.pid).children() if one.name() != "sleep"]
    others = [one for one in psutil.Process(started.pid).children() if one != child]
    started.kill()
    for other in others:
        other.kill()
    if said == "SIGTERM":
        time.sleep(0.5)
        child.terminate()
    assert started.stdout.readline() == f"{said}\n"
    started.wait()


def test_noted_before_anything_slow_is_imported():
    """Torch takes seconds, in which a scheduler may ask to stop."""
    code = "import sys, ibtrain.distributed.interruption; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert told == "False\n"
