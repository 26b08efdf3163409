"""Files as every room handles them: written atomically, read in bounds, locked by the kernel."""

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from yaml import MappingNode, Node, SequenceNode

_LARGEST_JSON = 64 * 2**20
_LARGEST_YAML = 2**20
_MOST_VALUES = 100_000


class FileError(ValueError):
    """A file that cannot be used as it is; says what was found and what to do."""


def write_whole(path: Path, content: str | bytes, *, temporary: Path | None = None) -> None:
    """Replaces `path` atomically and durably: a reader sees what was there or all of `content`.

    Args:
        path: the file.
        content: text is written as UTF-8.
        temporary: where it is written first, on the same file system (default: a fixed name beside
            `path`, so name one where several processes may write the file at a time).

    Raises:
        OSError: naming `path`; it is then as it was.
    """
    temporary = temporary or path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        # A full disk is reported without the file's name.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Makes a file's content durable, or a directory's renames."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Makes all that lies in a directory durable, at any depth."""
    for path in directory.rglob("*"):
        sync(path)
    sync(directory)


def refuse_unbounded_yaml(path: Path) -> None:
    """Refuses a YAML file that is large, or grows so by its aliases, before it is loaded.

    Raises:
        ValueError: saying which of both.
        yaml.YAMLError: when it is no YAML.
        OSError: when it cannot be read.
    """
    with path.open("rb") as file:
        text = file.read(_LARGEST_YAML + 1)
    if len(text) > _LARGEST_YAML:
        raise ValueError(f"it has more than {_LARGEST_YAML} bytes")
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if node is not None and _values(node, {}) > _MOST_VALUES:
        raise ValueError(f"its aliases make more than {_MOST_VALUES} values of it")


def _values(node: Node, known: dict[int, int]) -> int:
    """How many values a node and all below it are, once aliases are written out."""
    if id(node) not in known:
        known[id(node)] = _MOST_VALUES + 1  # of one that holds itself
        below: list[Node] = []
        if isinstance(node, MappingNode):
            below = [one for pair in node.value for one in pair]
        elif isinstance(node, SequenceNode):
            below = node.value
        known[id(node)] = 1 + sum(_values(one, known) for one in below)
    return known[id(node)]


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_LFS_POINTER = b"version https://git-lfs"


def check_not_pointer(path: Path) -> None:
    """Refuses the few lines that Git LFS leaves instead of a file until it is fetched.

    Raises:
        FileError: when the file is such a pointer.
    """
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) != _LFS_POINTER:
            return
    raise FileError(
        f"{path} is a pointer of Git LFS ({path.stat().st_size} bytes), not the file that it "
        "stands for; run `git lfs pull` in its clone, or download the file itself"
    )


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object of bounded size.

    Raises:
        FileError: when it is missing, too large, or not an object.
    """
    if not path.is_file():
        raise FileError(f"{path} is missing; {remedy}")
    if path.stat().st_size > _LARGEST_JSON:
        raise FileError(f"{path} has {path.stat().st_size} bytes, too many; {remedy}")
    try:
        check_not_pointer(path)
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileError:
        raise
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is not JSON ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise FileError(f"{path} is not a JSON object; {remedy}")
    return value


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
