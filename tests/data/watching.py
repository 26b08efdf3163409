"""What the code under test does to the machine: files written or read, programs started, time."""

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGING = {  # event: which of its arguments are paths, and the one that is their folder
    "os.chmod": ((0,), 2),
    "os.chown": ((0,), 3),
    "os.link": ((1,), 3),
    "os.mkdir": ((0,), 2),
    "os.mkfifo": ((0,), None),
    "os.remove": ((0,), 1),
    "os.rename": ((0, 1), 2),
    "os.rmdir": ((0,), 1),
    "os.symlink": ((1,), 2),
    "os.truncate": ((0,), None),
    "os.utime": ((0,), 3),
}
_FORBIDDEN = (
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "pickle.find_class",
    "socket.connect",
    "subprocess.Popen",
)


class Watch:
    """Records what Python is asked to do while `watching`.

    `written` and `read` hold absolute paths, `forbidden` the names of events that no reader of data
    has any business with: other programs, the network, pickles.
    """

    def __init__(self) -> None:
        self.written: set[str] = set()
        self.read: set[str] = set()
        self.forbidden: list[str] = []
        self._on = False
        sys.addaudithook(self._hear)  # which cannot be taken back, only be switched off

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, bytes, os.PathLike)):
                writing = isinstance(flags, int) and flags & _WRITING
                target = str(Path(os.fsdecode(path)).resolve())
                (self.written if writing else self.read).add(target)
        elif event in _CHANGING:
            paths, folder = _CHANGING[event]
            at = -1 if folder is None else arguments[folder]
            self.written.update(_absolute(arguments[number], at) for number in paths)
        elif event.startswith(_FORBIDDEN):
            self.forbidden.append(event)

    @contextmanager
    def watching(self, seconds: int = 10) -> Iterator[None]:
        """Listens; TimeoutError in the main thread after `seconds` of work, or six times as long
        of anything (another job may have the processor).
        """
        self.written, self.read, self.forbidden = set(), set(), []

        def too_long(*_: object) -> None:
            raise TimeoutError(f"took more than {seconds} s")

        before = {kind: signal.signal(kind, too_long) for kind in (signal.SIGPROF, signal.SIGALRM)}
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, 6 * seconds)
        self._on = True
        try:
            yield
        finally:
            self._on = False
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            for kind, handler in before.items():
                signal.signal(kind, handler)


def _absolute(path: Any, folder: int) -> str:
    """Where a path leads; links in the folders on the way are followed, it itself is not."""
    place = Path(os.fsdecode(path))
    if folder is not None and folder >= 0:
        place = Path(f"/proc/self/fd/{folder}") / place
    return str(place.parent.resolve() / place.name)


def outside(paths: set[str], *folders: Path) -> list[str]:
    """Those of the paths that are not within one of the folders."""
    inside = tuple(f"{folder}/" for folder in folders)
    same = {str(folder) for folder in folders}
    return sorted(path for path in paths if path not in same and not path.startswith(inside))


def snapshot(directory: Path, but: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below, with size and time of change, except those in `but`."""
    found = {}
    for folder, folders, files in os.walk(directory):
        if Path(folder) == but:
            folders.clear()
            continue
        for name in files + folders:
            status = os.lstat(f"{folder}/{name}")
            if f"{folder}/{name}" != str(but):
                found[f"{folder}/{name}"] = (status.st_size, status.st_mtime_ns)
    return found


def peak_memory() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
