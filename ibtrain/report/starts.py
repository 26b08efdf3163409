"""How often a run was started, when, from which step and on what.

Training writes a line of RUN/starts.jsonl at each start. For runs older than that file, and for
their starts before it was there, TensorBoard's files tell: there is one for each start, whose name
has the time and whose first records the step.
"""

import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from ibtrain.report.lines import Unread, objects, whole_number
from ibtrain.run_directory import STARTS

MOST_STARTS = 1000
_EVENTS = "events.out.tfevents."
_BEGINNING = 1 << 16
"""Bytes of an event file in which its first records lie."""
_SAME_START = 30.0
"""Seconds within which an event file and a line of starts.jsonl are of one start."""


@dataclass(frozen=True)
class Start:
    """One start of a run; `step` is the last one that was done before it, 0 at the beginning."""

    step: int | None
    seconds: float | None
    """Since 1970."""
    world_size: int | None = None
    recorded: bool = False
    """Whether training wrote it down, and not an event file alone tells of it."""
    versions: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def time(self) -> str:
        """When, in UTC."""
        return "" if self.seconds is None else when(self.seconds)


def when(seconds: float) -> str:
    """A time in UTC for people; nothing for one that no calendar has."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return ""


def read_starts(run: Path, unread: Unread) -> list[Start]:
    """The starts of a run in the order of their times, at most MOST_STARTS of them.

    Raises:
        OSError: a file cannot be read.
    """
    recorded = [_recorded(line) for line in islice(objects(run / STARTS, unread), MOST_STARTS)]
    first = min((s.seconds for s in recorded if s.seconds is not None), default=float("inf"))
    files = sorted(run.glob(f"{_EVENTS}*"))[:MOST_STARTS]
    told = [start for file in files if file.is_file() and (start := _of_event_file(file))]
    older = [s for s in told if s.seconds is not None and s.seconds < first - _SAME_START]
    return [*older, *recorded][:MOST_STARTS]


def _recorded(line: dict[str, Any]) -> Start:
    return Start(
        step=whole_number(line.get("step")),
        seconds=_seconds(line.get("time")),
        world_size=whole_number(line.get("world_size")),
        recorded=True,
        versions=_texts(line.get("versions")),
        environment=_texts(line.get("environment")),
    )


def _texts(found: Any) -> dict[str, str]:
    pairs = islice(found.items(), 100) if isinstance(found, dict) else ()
    return {str(key)[:100]: str(value)[:1000] for key, value in pairs if value is not None}


def _seconds(found: Any) -> float | None:
    try:
        return datetime.fromisoformat(found).timestamp() if isinstance(found, str) else None
    except (ValueError, OverflowError):
        return None


def _of_event_file(file: Path) -> Start | None:
    """The start that a TensorBoard file is of, None for a file that is none."""
    words = file.name.removeprefix(_EVENTS).split(".")
    if not (words[0].isascii() and words[0].isdigit() and len(words[0]) < 16):
        return None
    fraction = words[1] if len(words) > 1 and words[1].isascii() and words[1].isdigit() else "0"
    with file.open("rb") as opened:
        step = _step_of_start(opened.read(_BEGINNING))
    return Start(step, float(f"{words[0]}.{fraction[:6]}"))


def _step_of_start(data: bytes) -> int | None:
    """The step before the one that the first SessionLog of an event file names.

    A file is of records (length: 8 bytes, its checksum: 4, data, its checksum: 4), each an `Event`
    of TensorFlow's event.proto: `step` is field 2, `session_log` field 7.
    """
    at = 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        if at + 12 + length > len(data):
            return None
        fields = _fields(data[at + 12 : at + 12 + length])
        if 7 in fields:
            step = fields.get(2, 0)
            return max(0, step - 1) if isinstance(step, int) and step < 2**53 else None
        at += 12 + length + 4
    return None


def _fields(message: bytes) -> dict[int, int | bytes]:
    """The top fields of a message in protobuf's encoding; what cannot be read ends it."""
    fields: dict[int, int | bytes] = {}
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            fields[number], at = _varint(message, at)
        elif kind == 2:
            length, at = _varint(message, at)
            fields[number], at = message[at : at + length], at + length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            break
    return fields


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number in sevens of bits, and where the next thing begins."""
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            break
    return value, at
