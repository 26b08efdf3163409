"""Which of the runs that were started on one directory is the one that may write there.

Slurm begins a job again while tasks of a lost node still run; somebody gives a command twice. Each
start is an *incarnation* of the run and makes a directory of its own:

    RUN/incarnations/00000003-5f0c9a…/

The highest holds the run directory. It removes the directories of those before it, and only then
reads where they stopped. Whatever an incarnation publishes it first writes into its own directory
and then renames from there; once that is removed, no rename from it can succeed. So a file system
with atomic mkdir, rename and rmdir is enough: no lock, which network file systems may lack or lose,
and no clock. The last directory stays, so that numbers never repeat.
"""

import contextlib
import errno
import os
import secrets
import shutil
import socket
import time
from pathlib import Path

from ibtrain.files import sync, write_whole

INCARNATIONS = "incarnations"
REPLACED, SUPERSEDED = "replaced-", "superseded-"
_HOLDER = "holder"
_FENCED, _NEW = ".fenced-", ".new"
_TRIES, _PAUSE = 200, 0.05


class FencedError(RuntimeError):
    """This run's directory is held by a run that was started later; says which."""


class Incarnation:
    """One start of a run: what it may still write, until a later one takes its place.

    Args:
        run: the run directory, which is made where there is none.
        steps: the directory that steps lie in.

    Raises:
        OSError: when the directory cannot be written to.
        RuntimeError: when an earlier incarnation cannot be removed.
    """

    def __init__(self, run: Path, steps: Path) -> None:
        self.run, self.steps = run, steps
        parent = run / INCARNATIONS
        for directory in (parent, steps):
            directory.mkdir(parents=True, exist_ok=True)
        self.directory = _make(parent)
        for earlier in sorted(parent.iterdir()):
            if earlier.name.removeprefix(_FENCED) < self.directory.name and earlier.suffix != _NEW:
                self._remove(earlier)
        sync(parent)
        self.check()

    def check(self) -> None:
        """Nothing, while this is the latest incarnation.

        Raises:
            FencedError: when a later one has begun.
        """
        if not self.holds():
            raise self._fenced()

    def holds(self) -> bool:
        """Whether this is the latest incarnation still."""
        try:
            # A write, for a network file system may answer a look from its memory.
            os.utime(self.directory)
        except OSError as error:
            return error.errno not in (errno.ENOENT, errno.ESTALE)
        return True

    def publish(self, source: Path, target: Path) -> None:
        """Renames what was written in `directory` to where it is read.

        Raises:
            FencedError: when a later incarnation has begun; `target` is as it was.
            OSError: what the file system raised.
        """
        try:
            source.rename(target)
        except OSError:
            self.check()
            raise
        sync(target.parent)

    def write(self, path: Path, content: str | bytes) -> None:
        """Replaces a file of the run directory atomically.

        Raises:
            FencedError: when a later incarnation has begun; the file is as it was.
            OSError: naming the file; it is then as it was.
        """
        try:
            write_whole(path, content, temporary=self.directory / path.name)
        except OSError:
            self.check()
            raise

    def append(self, path: Path, data: bytes) -> None:
        """Adds `data` at the end of a file of the run directory; nothing of it on an error, and
        nothing once a later incarnation has begun.

        The file is opened before the look at who holds the directory. A later incarnation replaces
        the file (`write`) after it has fenced this one, so what is written here is in its copy, or
        in a file that has no name any more.

        Raises:
            OSError: what the file system raised; the file is then as it was.
        """
        with path.open("ab", buffering=0) as file:
            size = file.tell()
            if not self.holds():
                return
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(size)
                raise

    def _remove(self, earlier: Path) -> None:
        """Takes from an earlier incarnation what it writes by, then keeps what it moved aside."""
        fenced = earlier
        if not earlier.name.startswith(_FENCED):
            fenced = earlier.with_name(_FENCED + earlier.name)
            with contextlib.suppress(FileNotFoundError):  # a later one is at it, too
                # At once for those on this machine; for others it is the removal that counts.
                earlier.rename(fenced)
        for _ in range(_TRIES):
            self._put_back(fenced)
            shutil.rmtree(fenced, ignore_errors=True)
            if not fenced.exists():
                return
            time.sleep(_PAUSE)  # it is writing, or NFS keeps a name for a file that is open
        left = [path.name for path in fenced.iterdir()]
        if any(not name.startswith(".nfs") for name in left):
            raise RuntimeError(
                f"{fenced} of an earlier start cannot be removed ({', '.join(left[:3])} stays); "
                "end the processes that write there, and give the same command again"
            )

    def _put_back(self, fenced: Path) -> None:
        """Undoes a replacement, or ends a move, that stopped between its two renames."""
        for kept in fenced.glob(f"{REPLACED}*"):
            place = self.steps / kept.name.removeprefix(REPLACED)
            if not place.exists():
                _moved(kept, place)
        for kept in fenced.glob(f"{SUPERSEDED}*"):
            _moved(kept, self.steps / kept.name)

    def _fenced(self) -> FencedError:
        parent = self.run / INCARNATIONS
        if not parent.is_dir():
            return FencedError(f"{parent} was removed while this run was writing to {self.run}")
        holder = "another run"
        for path in sorted(parent.iterdir(), reverse=True):
            with contextlib.suppress(OSError):
                holder = (path / _HOLDER).read_text(errors="replace").strip()[:200]
                break
        return FencedError(
            f"{self.run} was taken over by a later start ({holder}), which goes on from the last "
            "checkpoint; this one ends and publishes nothing more"
        )


def _moved(source: Path, target: Path) -> None:
    with contextlib.suppress(OSError):  # a later one has done it, or the name is taken
        source.rename(target)


def _make(parent: Path) -> Path:
    """The directory of a new incarnation, above all others; it appears with its holder's name."""
    while True:
        names = [path.name.removeprefix(_FENCED) for path in parent.iterdir()]
        last = max((int(name[:8]) for name in names if name[:8].isdigit()), default=0)
        own = parent / f"{last + 1:08d}-{secrets.token_hex(8)}"
        temporary = parent / f".{own.name}{_NEW}"
        try:
            temporary.mkdir()
            (temporary / _HOLDER).write_text(_who() + "\n", encoding="utf-8")
            temporary.rename(own)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        # A listing may be old on a network file system; after a change of ours it is not.
        if max(path.name.removeprefix(_FENCED) for path in parent.iterdir()) <= own.name:
            return own
        shutil.rmtree(own, ignore_errors=True)


def _who() -> str:
    """This process, and its job if there is one."""
    job = os.environ.get("SLURM_JOB_ID")
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    within = f"job {job}, restart {restart}, " if job else ""
    return f"{within}process {os.getpid()} on {socket.gethostname()}"
