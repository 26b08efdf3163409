"""What a run reports: metrics.jsonl and TensorBoard, one line per logged step.

A report that cannot be written (a full disk) is given up with one warning; the run goes on.
"""

import json
import logging
import math
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from ibtrain.run_directory import write_atomically

logger = logging.getLogger(__name__)


class Telemetry:
    """Writes the metrics of one run directory; only rank 0 has one.

    Args:
        run: the run directory.
        resumed_step: lines after it belong to work that was lost, and are dropped, so that the
            files read as one uninterrupted run.
    """

    def __init__(self, run: Path, resumed_step: int):
        self._path = run / "metrics.jsonl"
        self._failed = False
        _drop_lines_after(self._path, resumed_step)
        self._writer = SummaryWriter(str(run), purge_step=resumed_step + 1)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Appends `{"step": step, **values}`; nested mappings become `outer/inner` scalars.

        A number that is not finite is null in the line and left out of TensorBoard.
        """
        if self._failed:
            return
        line = json.dumps({"step": step, **_finite(values)}, allow_nan=False, default=str)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            for name, value in _flat(values):
                self._writer.add_scalar(name, value, step)
            self._writer.flush()
        except OSError as error:
            self._failed = True
            logger.warning("metrics can no longer be written (%s); training goes on", error)

    def close(self) -> None:
        """Flushes what is pending."""
        try:
            self._writer.close()
        except OSError as error:
            if self._failed:
                return  # said already
            logger.warning("the TensorBoard log could not be closed (%s)", error)


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
