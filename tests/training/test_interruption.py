import os
import signal

import pytest

from ibtrain.training.interruption import SIGNALS, Interruption


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
