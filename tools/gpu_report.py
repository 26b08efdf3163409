"""Everything that only a GPU can tell of ibtrain, by one command, in a few minutes.

    python tools/gpu_report.py --out docs/benchmarks [--minutes 8] [--parts NAME ...]
    python tools/gpu_report.py --out DIR --rehearse

Each part runs in a process of its own, with a time limit of its own, and writes what it has as soon
as it has it; one that fails or hangs costs itself alone. The most valuable come first:

kernels     every form of our Triton kernels that the dispatch can choose, and the libraries that it
            can choose instead, against the reference in fp64: outputs, gradients, dropout, and a
            second run bit for bit.
training    small models with the family's true head widths, trained by `ibtrain train` under
            ZeRO-1, 2 and 3: the loss falls, a run that is killed and goes on ends with the same
            bits, transformers opens the export.
steps       the true 7B, then the 13B (random weights, frozen base, bf16, 16 samples with the
            lengths of the paper's mixture): time, memory and MFU of a step of ours, and of
            transformers' padded model.
attention   tools/bench_attention.py: attention and elementwise kernels beside SDPA and the limits.
planner     what `ibtrain plan` says of the same steps.

Writes OUT/DATE-CARD.json and .md, with plots beside them, anew after every part, and OUT/log.txt.
Exit code 1 where something is broken or a part did not end, 0 otherwise: a slow kernel is a result.
`--rehearse` runs all of it on a CPU at tiny sizes, Triton's kernels in its interpreter;
`--merge A.json B.json` makes one report of what a card had time for on several occasions.
"""

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]  # this checkout, installed or not


@dataclass(frozen=True)
class Part:
    """A part of the report."""

    name: str
    seconds: float
    """After which it is stopped, counted from where it has the card."""
    alone: bool
    """Whether it measures times, and so needs the card for itself."""


PARTS = (
    Part("machine", 60, alone=False),
    Part("kernels", 200, alone=False),
    Part("training", 240, alone=False),
    Part("planner", 120, alone=False),
    Part("step-7b", 75, alone=True),
    Part("step-7b-transformers", 60, alone=True),
    Part("step-13b", 75, alone=True),
    Part("step-13b-transformers", 60, alone=True),
    Part("attention", 95, alone=True),
    Part("step-7b-zero3", 75, alone=True),
    Part("step-t5-xxl", 75, alone=True),
)
REHEARSAL_SECONDS = 900
"""A rehearsal's limit for each part: a CPU's interpreter is slow."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts (or one of them, in a process of its own) and returns the exit code."""
    parsed = _parser().parse_args(arguments)
    if parsed.part:
        return _run_one(parsed)
    if parsed.merge:
        return _merge(parsed.merge, parsed.out)
    unknown = sorted(set(parsed.parts or ()) - {part.name for part in PARTS})
    if unknown:
        names = ", ".join(part.name for part in PARTS)
        _parser().error(f"there is no part {unknown[0]!r}; the parts are {names}")
    parts = [part for part in PARTS if not parsed.parts or part.name in parsed.parts]
    parsed.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu-report-") as directory:
        return _Report(parsed, parts, parsed.scratch or Path(directory)).run()


def _merge(reports: list[Path], out: Path) -> int:
    """One report of several: of each part the last that was done, or else the last of all."""
    from gpu_parts import page

    documents = sorted(
        (json.loads(path.read_text()) for path in reports), key=lambda it: it["date"]
    )
    merged: dict[str, Any] = dict(documents[-1])
    merged["seconds"] = sum(document["seconds"] for document in documents)
    merged["parts"] = {}
    for part in PARTS:
        found = [
            {"date": document["date"], "commit": document["commit"]} | document["parts"][part.name]
            for document in documents
            if part.name in document["parts"]
        ]
        if found:
            done = [each for each in found if each["done"]]
            merged["parts"][part.name] = (done or found)[-1]
    merged["merged"] = len(documents)
    out.mkdir(parents=True, exist_ok=True)
    page.write(merged, out, [])
    return 0


def _run_one(parsed: argparse.Namespace) -> int:
    if parsed.rehearse:
        os.environ.pop("TRITON_INTERPRET", None)
        if parsed.part in ("kernels", "attention"):
            os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported
    from gpu_parts.sheet import Job, run_part

    # Its own module alone: a library that one part lacks is no other's trouble.
    module = "steps" if parsed.part.startswith("step-") else parsed.part
    job = Job(parsed.part, parsed.rehearse, parsed.world, parsed.scratch, parsed.seconds)
    return run_part(job, importlib.import_module(f"gpu_parts.{module}").run)


class _Running:
    """A part's process."""

    def __init__(self, part: Part, seconds: float, report: "_Report") -> None:
        from gpu_parts.sheet import Job, quiet_environment

        parsed = report.parsed
        self.part, self.seconds, self.begun = part, seconds, time.monotonic()
        self.job = Job(part.name, parsed.rehearse, report.world, report.scratch, seconds)
        self.log = report.scratch / f"{part.name}.log"
        command = [sys.executable, str(Path(__file__).resolve()), "--part", part.name]
        command += ["--out", str(parsed.out), "--world", str(report.world)]
        command += ["--scratch", str(report.scratch), "--seconds", str(seconds)]
        command += ["--rehearse"] if parsed.rehearse else []
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=quiet_environment(self.job),
                start_new_session=True,
            )
        self.had_card: float | None = None
        self.state = "running"

    def look(self) -> None:
        """Notices that it has the card, has ended, or takes too long."""
        now = time.monotonic()
        if self.had_card is None and self.job.marker.exists():
            self.had_card = now
        code = self.process.poll()
        if code is not None:
            self.state = "done" if code == 0 else f"ended with exit code {code}"
            self._end()  # what it started and left behind
        elif self.had_card is not None and now - self.had_card > self.seconds:
            self.stop(f"stopped after {self.seconds:.0f} s")

    def stop(self, why: str) -> None:
        """Ends it and everything that it started."""
        self._end()
        self.process.wait()
        self.state = why

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def result(self) -> dict[str, Any]:
        """What it has found so far."""
        nothing: dict[str, Any] = {"facts": {}, "rows": [], "faults": [], "done": False}
        known = json.loads(self.job.file.read_text()) if self.job.file.is_file() else nothing
        known["state"] = self.state
        known["wall_seconds"] = time.monotonic() - self.begun
        if self.state not in ("done", "running"):
            lines = self.log.read_text(errors="replace").splitlines()
            known["log_tail"] = lines[-30:]
        return dict(known)


class _Report:
    """All parts, their order, and what they have found."""

    def __init__(self, parsed: argparse.Namespace, parts: list[Part], scratch: Path) -> None:
        self.parsed, self.waiting, self.scratch = parsed, list(parts), scratch
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.world = parsed.world or self.scratch / "world"
        self.begun = time.monotonic()
        self.deadline = self.begun + 60 * parsed.minutes
        self.running: list[_Running] = []
        self.results: dict[str, dict[str, Any]] = {}
        self.date = datetime.now(UTC)

    def run(self) -> int:
        while (self.waiting or self.running) and time.monotonic() < self.deadline:
            self._start()
            self._look()
            time.sleep(0.1)
        for running in self.running:
            running.stop("stopped: the time is over")
            self._take(running)
        for part in self.waiting:
            empty = {"facts": {}, "rows": [], "faults": [], "done": False, "wall_seconds": 0.0}
            self.results[part.name] = empty | {"state": "not begun: the time is over"}
        document = self._write()
        print(
            f"{sum(1 for each in document['parts'].values() if each['done'])} of "
            f"{len(document['parts'])} parts done in {time.monotonic() - self.begun:.0f} s"
        )
        broken = [
            f"{name}: {fault}"
            for name, each in document["parts"].items()
            for fault in each["faults"]
        ]
        unfinished = [
            f"{name}: {each['state']}"
            for name, each in document["parts"].items()
            if not each["done"]
        ]
        for line in (*broken, *unfinished):
            print("AT FAULT  " + line)
        return 1 if broken or unfinished else 0

    def _start(self) -> None:
        """Starts what may start: all that share the card, and of the others one ahead, so that it
        has its libraries loaded when the card is free. On a CPU, one after the other.
        """
        for part in list(self.waiting):
            if self.parsed.rehearse and self.running:
                return
            if part.alone and any(
                running.part.alone and running.had_card is None for running in self.running
            ):
                continue
            self.waiting.remove(part)
            seconds = REHEARSAL_SECONDS if self.parsed.rehearse else part.seconds
            self.running.append(_Running(part, seconds, self))
            print(f"[{time.monotonic() - self.begun:5.1f}] {part.name} begins", flush=True)

    def _look(self) -> None:
        for running in list(self.running):
            running.look()
            if running.state != "running":
                self.running.remove(running)
                self._take(running)
                self._write()

    def _take(self, running: _Running) -> None:
        found = running.result()
        self.results[running.part.name] = found
        print(
            f"[{time.monotonic() - self.begun:5.1f}] {running.part.name} {running.state}: "
            f"{len(found['rows'])} rows, {len(found['faults'])} faults",
            flush=True,
        )
        for line in found["faults"]:
            print(f"        {line}", flush=True)

    def _write(self) -> dict[str, Any]:
        from gpu_parts import page

        document = {
            "date": self.date.isoformat(timespec="seconds"),
            "rehearsal": self.parsed.rehearse,
            "commit": self.parsed.commit or _commit(),
            "seconds": time.monotonic() - self.begun,
            "parts": {
                part.name: self.results[part.name] for part in PARTS if part.name in self.results
            },
        }
        logs = [self.scratch / f"{part.name}.log" for part in PARTS]
        page.write(document, self.parsed.out, [log for log in logs if log.is_file()])
        return document


def _commit() -> str:
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return told.stdout.strip() or "unknown"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--minutes", type=float, default=8, help="after which all is stopped")
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, at tiny sizes")
    parser.add_argument("--world", type=Path, metavar="DIR", help="a toy world made before")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="kept (else temporary)")
    parser.add_argument(
        "--merge", nargs="+", type=Path, metavar="JSON", help="makes one report of several"
    )
    parser.add_argument("--commit", help="what to call the commit where git cannot be asked")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=600, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
