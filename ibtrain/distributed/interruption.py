"""What asks a run to stop: it saves a checkpoint first and ends with exit code 3.

A signal, or the death of the launcher. SIGTERM to the `deepspeed` command ends that process and no
other (DeepSpeed 0.19.8): the ranks would train on, hold their GPUs, and nobody would know of them.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType

from ibtrain.distributed.launchers import is_launched, rank_told

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "fish", "csh", "tcsh", "ash", "busybox"}
_PROCESSES = Path("/proc")


class Interruption:
    """Notes the first signal; the loop asks `requested` once per step and agrees among ranks.

    Make it before anything slow is imported: what asks a run to stop while it starts is noted too.
    A second SIGINT (Ctrl-C pressed twice) stops at once.
    """

    def __init__(self) -> None:
        self._noted: str | None = None
        self._launcher = _LivingLauncher() if is_launched() else None
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}

    @property
    def requested(self) -> str | None:
        """What asked this process to stop: a signal's name, or what became of the launcher."""
        if self._noted is None and self._launcher is not None and self._launcher.is_gone():
            self._noted = "the launcher ended"
        return self._noted

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._noted is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._noted = signal.Signals(number).name
        if number == signal.SIGINT and rank_told() == 0:
            # Not through logging, whose locks the interrupted code may hold.
            os.write(sys.stderr.fileno(), b"saving after this step; once more stops at once\n")

    def restore(self) -> None:
        """Puts the handlers back that were there before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class _LivingLauncher:
    """The process that started this one, and the `deepspeed` command above it.

    A shell may go while what it started goes on: that is how one logs out.
    """

    def __init__(self) -> None:
        parent = os.getppid()
        self._parent = None if _is_shell(parent) else parent
        above = _parent_of(parent)
        within = "deepspeed.launcher.launch" in _command(parent)
        self._command = above if within and "deepspeed" in _command(above) else None

    def is_gone(self) -> bool:
        """Whether one of them has ended; its children then have another parent."""
        if self._parent is None:
            return False
        if os.getppid() != self._parent:
            return True
        return self._command is not None and _parent_of(self._parent) != self._command


def _is_shell(process: int) -> bool:
    try:
        return (_PROCESSES / str(process) / "comm").read_text().strip() in _SHELLS
    except OSError:
        return False


def _command(process: int) -> str:
    try:
        return (_PROCESSES / str(process) / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _parent_of(process: int) -> int:
    """0 where it cannot be told."""
    try:
        status = (_PROCESSES / str(process) / "stat").read_text()
    except OSError:
        return 0
    # pid (name) state parent ...; the name may hold blanks and brackets.
    return int(status.rpartition(")")[2].split()[1])
