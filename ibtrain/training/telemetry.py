"""What a run reports: metrics.jsonl and TensorBoard, one line per logged step, and
quarantine.jsonl, one line per shard or record that is bad.

A report that cannot be written (a full disk) is left out with one warning; the run goes on, and so
does the report when there is space again. TensorBoard's own writer works in a thread, which dies of
its first error; here its events are appended in place, whole or not at all.
"""

import contextlib
import io
import json
import logging
import math
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from ibtrain.run_directory import write_atomically

logger = logging.getLogger(__name__)


class Telemetry:
    """Writes the metrics of one run directory; only rank 0 has one.

    Args:
        run: the run directory.
        resumed_step: lines after it belong to work that was lost, and are dropped, so that the
            files read as one uninterrupted run.
    """

    def __init__(self, run: Path, resumed_step: int) -> None:
        self._lines = run / "metrics.jsonl"
        self._quarantine = run / "quarantine.jsonl"
        self._events = run / (
            f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        )
        self._failing = False
        _drop_lines_after(self._lines, resumed_step)
        _drop_lines_after(self._quarantine, resumed_step)
        purge = Event(step=resumed_step + 1, session_log=SessionLog(status=SessionLog.START))
        _append(self._events, _record(Event(file_version="brain.Event:2")) + _record(purge))

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Appends `{"step": step, **values}`; nested mappings become `outer/inner` scalars.

        A number that is not finite is null in the line and left out of TensorBoard.
        """
        line = json.dumps({"step": step, **_finite(values)}, allow_nan=False, default=str)
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in _flat(values)]
        event = _record(Event(step=step, summary=Summary(value=scalars)))
        self._report((self._lines, (line + "\n").encode()), (self._events, event))

    def quarantine(self, step: int, entries: Sequence[dict[str, Any]]) -> None:
        """Appends `{"step": step, **entry}` for each bad shard or record that a step met."""
        lines = "".join(json.dumps({"step": step, **entry}) + "\n" for entry in entries)
        if lines:
            self._report((self._quarantine, lines.encode()))

    def _report(self, *written: tuple[Path, bytes]) -> None:
        try:
            for path, data in written:
                _append(path, data)
        except OSError as error:
            if not self._failing:
                logger.warning("metrics cannot be written now (%s); training goes on", error)
            self._failing = True
        else:
            self._failing = False


def _record(event: Event) -> bytes:
    """An event as it stands in TensorBoard's file."""
    event.wall_time = time.time()
    written = io.BytesIO()
    RecordWriter(written).write(event.SerializeToString())
    return written.getvalue()


def _append(path: Path, data: bytes) -> None:
    """Adds `data` at the end of a file; on an error the file is as it was."""
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _finite(value)
        if isinstance(value, dict)
        else None
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for name, value in values.items()
    }


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    scalars: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            scalars += _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            scalars.append((prefix + name, float(value)))
    return scalars


def _drop_lines_after(path: Path, step: int) -> None:
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # the half line of a killed process
    write_atomically(path, "".join(kept))
