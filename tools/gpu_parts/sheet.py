"""What a part of the report writes, and the card that parts share.

A part's results stand in its file from the moment it has them, so that one that fails, hangs or is
cut off costs itself alone.
"""

import contextlib
import fcntl
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Job:
    """What a part is asked for."""

    name: str
    rehearse: bool
    """Tiny sizes on a CPU, Triton's kernels in its interpreter."""
    world: Path
    """A small toy world with shards (world.py)."""
    scratch: Path
    """For everything that is not a result."""
    seconds: float
    """After so long it is stopped."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return torch.device("cpu" if self.rehearse else "cuda")

    @property
    def file(self) -> Path:
        """Where its results stand."""
        return self.scratch / f"{self.name}.json"

    @property
    def marker(self) -> Path:
        """It is there as soon as the part has the card."""
        return self.scratch / f"{self.name}.has-card"


@dataclass
class Sheet:
    """The results of one part, written to its file at every change."""

    job: Job
    facts: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """What is wrong, in sentences: each makes the report's exit code 1."""
    done: bool = False

    def add(self, **row: Any) -> None:
        """One more row."""
        self.rows.append(row)
        self.write()

    def fault(self, sentence: str) -> None:
        """Something that a user would call broken."""
        self.faults.append(sentence)
        self.write()

    def write(self) -> None:
        """Replaces the file by what is known now."""
        known = {key: getattr(self, key) for key in ("facts", "rows", "faults", "done")}
        beside = self.job.file.with_suffix(".writing")
        beside.write_text(json.dumps(known, indent=1), encoding="utf-8")
        beside.replace(self.job.file)

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """What fails inside is a fault, and the part goes on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever a card brings up is a result
            traceback.print_exc()
            self.fault(f"{what}: {type(error).__name__}: {first_line(error)}")


def first_line(error: BaseException) -> str:
    """The first line of what an error says, cut to a length that a table takes."""
    return (str(error).strip() or "no message").splitlines()[0][:300]


@contextlib.contextmanager
def card(job: Job, *, alone: bool) -> Iterator[None]:
    """Waits for the card: parts that time something have it alone, the others share it."""
    with (job.scratch / "card.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        job.marker.touch()
        yield


def run_part(job: Job, run: Callable[[Job, Sheet], None]) -> int:
    """Runs a part in this process; the exit code."""
    sheet = Sheet(job)
    sheet.write()
    begun = time.perf_counter()
    with sheet.attempt(f"the part {job.name} broke off"):
        run(job, sheet)
        sheet.done = True
    sheet.facts["seconds"] = time.perf_counter() - begun
    sheet.write()
    return 0 if sheet.done and not sheet.faults else 1


def quiet_environment(job: Job) -> dict[str, str]:
    """The environment of a part's process, which makes it one of a single rank."""
    known = {key: value for key, value in os.environ.items() if key != "IBTRAIN_ATTENTION"}
    known |= {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    root = str(Path(__file__).resolve().parents[2])
    known["PYTHONPATH"] = os.pathsep.join(filter(None, [root, known.get("PYTHONPATH")]))
    if job.rehearse:
        known |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    return known
