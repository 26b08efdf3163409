"""What a run reports: metrics.jsonl and TensorBoard, one line per logged step, and
quarantine.jsonl, one line per shard or record that is bad.

A report that cannot be written (a full disk) is left out with one warning; the run goes on, and so
does the report when there is space again. TensorBoard's own writer works in a thread, which dies of
its first error; here its events are appended to the file, each atomically. Where TensorBoard is
not installed, metrics.jsonl alone is written.
"""

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

from ibtrain.fencing import Incarnation

logger = logging.getLogger(__name__)


class Telemetry:
    """Writes the metrics of one run directory; only rank 0 has one.

    Args:
        incarnation: which holds the run directory; a line of one that does no more is left out.
        resumed_step: lines after it belong to work that was lost, and are dropped, so that the
            files read as one uninterrupted run.
    """

    def __init__(self, incarnation: Incarnation, resumed_step: int) -> None:
        self._incarnation = incarnation
        run = incarnation.run
        self._lines, self._quarantine = run / "metrics.jsonl", run / "quarantine.jsonl"
        self._events = _EventFile.beside(run)
        self._failing = False
        for path in (self._lines, self._quarantine):
            if path.is_file():
                incarnation.write(path, _lines_until(path, resumed_step))
        if self._events is not None:
            incarnation.append(self._events.path, self._events.begin(resumed_step + 1))

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Appends `{"step": step, **values}`; nested mappings become `outer/inner` scalars.

        A number that is not finite is null in the line and left out of TensorBoard.
        """
        line = json.dumps({"step": step, **_finite(values)}, allow_nan=False, default=str)
        written = [(self._lines, (line + "\n").encode())]
        if self._events is not None:
            written.append((self._events.path, self._events.scalars(step, _flat(values))))
        self._report(*written)

    def quarantine(self, step: int, entries: Sequence[dict[str, Any]]) -> None:
        """Appends `{"step": step, **entry}` for each bad shard or record that a step met."""
        lines = "".join(json.dumps({"step": step, **entry}) + "\n" for entry in entries)
        if lines:
            self._report((self._quarantine, lines.encode()))

    def _report(self, *written: tuple[Path, bytes]) -> None:
        try:
            for path, data in written:
                self._incarnation.append(path, data)
        except OSError as error:
            if not self._failing:
                logger.warning("metrics cannot be written now (%s); training goes on", error)
            self._failing = True
        else:
            self._failing = False


class _EventFile:
    """TensorBoard's file of one start of a run: what is to be appended to it."""

    def __init__(self, path: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.path = path
        self._event, self._session = event_pb2.Event, event_pb2.SessionLog
        self._summary, self._writer = summary_pb2.Summary, RecordWriter

    @classmethod
    def beside(cls, run: Path) -> "_EventFile | None":
        """The file of this start in a run directory, or none where TensorBoard cannot be imported,
        which is said.
        """
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        try:
            return cls(run / name)
        except ImportError as error:
            logger.warning(
                "no file for TensorBoard is written, for it cannot be imported (%s): pip install "
                "tensorboard; the same figures stand in metrics.jsonl",
                error,
            )
            return None

    def begin(self, first_step: int) -> bytes:
        """The beginning of the file; steps from `first_step` on that other files have are void."""
        start = self._session(status=self._session.START)
        return self._record(self._event(file_version="brain.Event:2")) + self._record(
            self._event(step=first_step, session_log=start)
        )

    def scalars(self, step: int, values: Sequence[tuple[str, float]]) -> bytes:
        """The scalars of a step."""
        listed = [self._summary.Value(tag=name, simple_value=value) for name, value in values]
        return self._record(self._event(step=step, summary=self._summary(value=listed)))

    def _record(self, event: Any) -> bytes:
        """An event as it stands in the file."""
        event.wall_time = time.time()
        written = io.BytesIO()
        self._writer(written).write(event.SerializeToString())
        return written.getvalue()


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


def _lines_until(path: Path, step: int) -> str:
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # the half line of a killed process
    return "".join(kept)
