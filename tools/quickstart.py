"""The whole job on a toy world, every step through the public commands.

    make quickstart          (or: .venv/bin/python tools/quickstart.py [--directory quickstart])

Draws a toy world in the official file layouts of the 26 datasets, prepares shards of the 13 that
are trained on, trains a base (captioning, every part), tunes it on instructions (Q-Former only)
under DeepSpeed ZeRO-3 on two processes, evaluates it on scenes it never saw, exports it, and asks
transformers' own classes for the same answers. Give the command again after an interruption:
finished steps are kept.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ibtrain.cli import main as ibtrain
from ibtrain.data import catalog
from ibtrain.data.toy import PLACES

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
TRAINING_SETS = [entry.name for entry in catalog.entries() if entry.role == "held_in"]
TEXT_ALONE = "toy_text"
BENCHMARKS = {"gqa": "testdev", "gqa-challenge": "challenge"}


class Quickstart:
    """Runs the steps in order; each is a command that a person could type."""

    def __init__(self, directory: Path, ranks: int, rehearsal: bool) -> None:
        self.directory = directory
        self.ranks = ranks
        self.rehearsal = rehearsal
        self.environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}
        if shutil.which("nvidia-smi") is None:
            self.environment["DS_ACCELERATOR"] = "cpu"

    def run(self, *command: str | Path) -> None:
        """Shows and runs one command; ends the quickstart if it fails."""
        words = [str(word) for word in command]
        print(f"\n$ {shlex.join(words)}", flush=True)
        self.end_unless_success(subprocess.run(words, env=self.environment).returncode)

    def run_here(self, *command: str | Path) -> None:
        """As `run`, for a command of ibtrain that is over sooner than a process has started."""
        words = [str(word) for word in command]
        print(f"\n$ {shlex.join(['ibtrain', *words])}", flush=True)
        self.end_unless_success(ibtrain(words))

    def end_unless_success(self, code: int) -> None:
        """Ends the quickstart where a command failed."""
        if code:
            raise SystemExit(
                f"\nquickstart: this command ended with exit code {code}; mend what it says and "
                "run `make quickstart` again (finished steps are kept)"
            )

    def train(self, recipe: str) -> None:
        """One training run under the deepspeed launcher."""
        self.run(
            "deepspeed",
            "--no_local_rank",
            "--log_level=error",
            f"--num_accelerators={self.ranks}",
            "--module",
            "ibtrain",
            "train",
            recipe,
            f"root={self.directory}",
            *(("training.steps=4", "checkpoint.every=2") if self.rehearsal else ()),
        )

    def prepare(self) -> None:
        """The toy world and its shards."""
        raw = self.directory / "raw"
        size = ("--train-images", "64", "--test-images", "12") if self.rehearsal else ()
        self.run_here("data", "toy", raw, *size)
        shards = self.directory / "shards"
        for dataset in (*TRAINING_SETS, TEXT_ALONE):
            self.prepare_one(dataset, PLACES[dataset].splits[0], shards / dataset)
        for name, split in BENCHMARKS.items():
            self.prepare_one("gqa", split, self.directory / "benchmarks" / name)

    def prepare_one(self, dataset: str, split: str, out: Path) -> None:
        """The shards of one split."""
        raw = self.directory / "raw" / PLACES[dataset].folder
        self.run_here(
            *("data", "prepare", dataset, "--split", split, "--raw", raw, "--out", out),
        )

    def export(self, recipe: str, name: str) -> None:
        """A run in transformers' format; kept if it is there already."""
        out = self.directory / name
        if out.exists():
            print(f"\n{out} is there already")
            return
        self.run(
            *("ibtrain", "export", self.directory / "runs" / recipe),
            *("--to", "hf", "--out", out),
        )

    def evaluate(self, model: str, name: str, *options: str) -> dict[str, Any]:
        """Scores a model; returns the benchmarks of its results.json."""
        out = self.directory / "evaluation" / name
        benchmarks = self.directory / "benchmarks"
        self.run(
            *("ibtrain", "evaluate", self.directory / model),
            # transformers answers the same questions below, one beam and no penalties.
            *("--data", benchmarks, "--out", out, "--greedy", *options),
        )
        results: dict[str, Any] = json.loads((out / "results.json").read_text())["benchmarks"]
        return results


def main() -> int:
    """Runs the quickstart and prints the last screen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, default=Path("quickstart"))
    parser.add_argument("--ranks", type=int, default=2, help="processes that train together")
    parser.add_argument(
        "--rehearsal",
        action="store_true",
        help="every step on a handful of images: tries the commands, learns nothing",
    )
    arguments = parser.parse_args()
    began = time.monotonic()
    job = Quickstart(arguments.directory, arguments.ranks, arguments.rehearsal)
    job.prepare()
    job.train("toy-base")
    job.export("toy-base", "base")
    base = job.evaluate("base", "base", "--benchmark", "gqa")
    job.train("toy")
    tuned = job.evaluate("runs/toy", "tuned")
    shuffled = job.evaluate("runs/toy", "shuffled", "--shuffle-images", "--benchmark", "gqa")
    job.export("toy", "export")
    job.run(
        *(sys.executable, ROOT / "tools/answer_with_transformers.py", job.directory / "export"),
        *("--predictions", job.directory / "evaluation/tuned/predictions.jsonl"),
        *("--data", job.directory / "benchmarks/gqa"),
    )
    print(last_screen(job.directory, base, tuned, shuffled, time.monotonic() - began))
    return 0


def last_screen(
    directory: Path,
    base: dict[str, Any],
    tuned: dict[str, Any],
    shuffled: dict[str, Any],
    seconds: float,
) -> str:
    """What was trained, how well, where everything lies, and what to try next."""
    last = json.loads((directory / "runs/toy/metrics.jsonl").read_text().splitlines()[-1])

    def row(label: str, values: dict[str, Any], benchmark: str, key: str = "value") -> str:
        return f"  {label:<44}{100 * values[benchmark][key]:6.1f} %   n={values[benchmark]['n']}"

    kinds = "  ".join(
        f"{kind} {100 * part['value']:.0f}" for kind, part in tuned["gqa"]["by_type"].items()
    )
    return "\n".join(
        [
            "",
            "=" * 78,
            f"ibtrain quickstart: done in {seconds / 60:.1f} minutes",
            "",
            "Trained   InstructBLIP in miniature: a ViT, a Q-Former reading image and instruction,",
            "          a Llama. Base: captioning, every part trained. Then instruction tuning with",
            "          the vision tower and the language model frozen, DeepSpeed ZeRO-3, step "
            f"{last['step']}.",
            "",
            "Exact match on questions about scenes it never saw:",
            row("tuned, unseen scenes", tuned, "gqa"),
            row("tuned, unseen colour-shape combinations", tuned, "gqa-challenge"),
            row("the base before tuning", base, "gqa"),
            row("tuned, images shuffled among the questions", shuffled, "gqa"),
            row("best constant answer per question type", tuned, "gqa", "best_constant"),
            f"  by type: {kinds}",
            "",
            f"Run       {directory / 'runs/toy'}   (tensorboard --logdir {directory / 'runs'})",
            f"Export    {directory / 'export'}   (opens with transformers' from_pretrained)",
            f"Picture   {directory / 'evaluation/tuned/gqa.png'}   (questions and answers)",
            "",
            "Next:",
            f"  .venv/bin/ibtrain ask {directory / 'export'} --beams 1 \\",
            f"      --image {sorted((directory / 'raw/gqa/images').glob('*.jpg'))[0]} \\",
            "      --prompt 'Question: How many objects are there? Short answer:'",
            "=" * 78,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
