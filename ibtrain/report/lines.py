"""JSON Lines as a run leaves them, read a line at a time, past what is damaged or half written."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LONGEST = 2**20
"""Bytes of a line; metrics of a hundred datasets are a tenth of it."""


@dataclass
class Unread:
    """How many lines were passed over: of those before the last one, and whether the last one is
    half written, as it is in a run that goes on.
    """

    damaged: int = 0
    half_written: bool = False


def objects(path: Path, unread: Unread) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one a line; nothing where there is no file.

    Args:
        path: the file.
        unread: takes note of the lines that are none.

    Raises:
        OSError: the file cannot be read.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        while line := file.readline(_LONGEST):
            whole = line.endswith(b"\n")
            if not whole and len(line) == _LONGEST:
                unread.damaged += 1
                while (rest := file.readline(_LONGEST)) and not rest.endswith(b"\n"):
                    continue
                continue
            found = _object(line)
            if found is not None:
                yield found
            elif not whole:
                unread.half_written = True
            elif line.strip():
                unread.damaged += 1


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def whole_number(value: Any) -> int | None:
    """A step or a count; None for anything else, and for what no run reaches."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53:
        return int(value)
    return None
