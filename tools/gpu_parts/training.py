"""Small models with the family's head widths, trained by `ibtrain train` on the card.

For each setting three runs of the same command: a quiet one, one that is killed (kill -9) between
two checkpoints, and that one's continuation, which must end with the quiet run's bits. The loss
must fall. Exports are opened and compared with transformers' own classes by the export's proof; a
model is asked for an answer on the card.
"""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gpu_parts.sheet import Job, Sheet, card
from gpu_parts.world import DATASETS, make_world
from ibtrain.files import sha256_of
from ibtrain.run_directory import latest_step, verify_step

STEPS, EVERY, KILLED_AFTER = 40, 16, 20
REHEARSED_STEPS, REHEARSED_EVERY, REHEARSED_KILL = 6, 2, 3


@dataclass(frozen=True)
class Setting:
    """A way to train."""

    language: str
    sharding: str
    precision: str
    parts: str
    """What of the language model is trained."""
    recompute: bool = False
    kernels: str = "auto"
    exported: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As a directory's."""
        words = (self.language, self.sharding, self.precision, self.parts)
        return "-".join([*words, *(["no-kernels"] if self.kernels == "off" else [])])


SETTINGS = (
    Setting("llama", "zero2", "bf16", "lora", exported=("hf", "peft")),
    Setting("llama", "zero3", "bf16", "frozen", recompute=True, exported=("hf", "lavis")),
    Setting("llama", "zero1", "bf16", "frozen"),
    Setting("t5", "zero3", "bf16", "frozen", exported=("hf",)),
    Setting("llama", "zero3", "fp32", "lora"),
    Setting("t5", "zero2", "fp32", "frozen", recompute=True),
    # A T5 whose own bias is trained: its gradient is added up by atomics, and promises no bits.
    Setting("t5", "zero2", "bf16", "full"),
    Setting("llama", "zero2", "bf16", "frozen", kernels="off"),
)
REHEARSED = (SETTINGS[0], SETTINGS[3])


def run(job: Job, sheet: Sheet) -> None:
    """All settings, side by side on a card, one after the other on a CPU."""
    world = make_world(job.world)
    settings = REHEARSED if job.rehearse else SETTINGS
    with card(job, alone=False), ThreadPoolExecutor(1 if job.rehearse else len(SETTINGS)) as pool:
        for _ in pool.map(lambda setting: _try(job, sheet, world, setting), settings):
            pass


def _try(job: Job, sheet: Sheet, world: Path, setting: Setting) -> None:
    with sheet.attempt(setting.name):
        _Trial(job, sheet, world, setting).run()


class _Trial:
    """One setting's runs."""

    def __init__(self, job: Job, sheet: Sheet, world: Path, setting: Setting) -> None:
        self.job, self.sheet, self.setting = job, sheet, setting
        self.directory = job.scratch / setting.name
        shutil.rmtree(self.directory, ignore_errors=True)  # of a report before
        self.directory.mkdir(parents=True)
        self.recipe = self.directory / "recipe.yaml"
        steps = (
            (REHEARSED_STEPS, REHEARSED_EVERY, REHEARSED_KILL)
            if job.rehearse
            else (STEPS, EVERY, KILLED_AFTER)
        )
        self.steps, every, self.killed_after = steps
        self.recipe.write_text(
            yaml.safe_dump(recipe(setting, world, job.rehearse, self.steps, every))
        )

    def run(self) -> None:
        """Quiet and killed side by side, then the killed one again; exports; an answer."""
        setting, sheet = self.setting, self.sheet
        quiet, killed = self.directory / "quiet", self.directory / "killed"
        begun = time.perf_counter()
        first = self._start("train", quiet)
        second = self._start("train", killed)
        self._kill_when_due(second, killed)
        self._end(first, "train")
        seconds = time.perf_counter() - begun
        losses = [line["loss"] for line in _metrics(quiet)]
        fell = statistics.mean(losses[-5:]) < statistics.mean(losses[:5])
        self._end(self._start("train", killed), "go on")
        same = _bits(quiet) == _bits(killed)
        row: dict[str, Any] = {
            "name": setting.name,
            "losses": losses,
            "samples_per_second": _metrics(quiet)[-1]["samples_per_second"],
            "device_gib": _metrics(quiet)[-1]["memory"].get("device_gib"),
            "loss_fell": fell,
            "resumed_with_the_same_bits": same,
            "largest_difference": 0.0 if same else _difference(quiet, killed),
            "seconds": seconds,
            "exports": {},
        }
        if not fell and not self.job.rehearse:
            ends = f"{losses[0]:.3f}, {losses[-1]:.3f}"
            sheet.fault(f"{setting.name}: the loss does not fall: {ends}")
        if not same and not (setting.language == "t5" and setting.parts == "full"):
            sheet.fault(
                f"{setting.name}: killed and gone on, it ends with other bits (by up to "
                f"{row['largest_difference']:.1e})"
            )
        for kind in setting.exported:
            out = self.directory / kind
            text = self._command("export", str(quiet), "--to", kind, "--out", str(out), "--json")
            row["exports"][kind] = json.loads(text)["proof"]
        if setting.exported:
            picture = next((self.job.world / "raw").rglob("*.jpg"))
            said = self._command(
                *("ask", str(quiet), "--image", str(picture), "--max-new-tokens", "8"),
                *("--prompt", "Question: What is there? Short answer:", "--json"),
            )
            row["answer"] = json.loads(said)["answer"]
        sheet.add(**row)

    def _start(self, verb: str, run: Path) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "ibtrain", verb, str(self.recipe), f"output={run}"]
        with (self.directory / f"{run.name}.log").open("a") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, text=True, env=_environment()
            )

    def _kill_when_due(self, process: "subprocess.Popen[str]", run: Path) -> None:
        while process.poll() is None and len(_metrics(run)) < self.killed_after:
            time.sleep(0.01)
        if process.poll() is not None:
            raise RuntimeError(f"it ended before it was killed: {self._last_words(run)}")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    def _end(self, process: "subprocess.Popen[str]", what: str) -> None:
        if process.wait():
            run = Path(str(process.args[-1]).removeprefix("output="))  # type: ignore[index]
            raise RuntimeError(f"{what}: exit code {process.returncode}: {self._last_words(run)}")

    def _last_words(self, run: Path) -> str:
        lines = (self.directory / f"{run.name}.log").read_text(errors="replace").splitlines()
        print(f"--- {self.setting.name} {run.name}", *lines[-40:], sep="\n", flush=True)
        return " | ".join(line for line in lines[-3:] if line.strip())

    def _command(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "ibtrain", *arguments],
            capture_output=True,
            text=True,
            env=_environment(),
        )
        if done.returncode:
            print(done.stderr, flush=True)
            words = " | ".join(done.stderr.strip().splitlines()[-3:])
            raise RuntimeError(f"{arguments[0]}: exit code {done.returncode}: {words}")
        return done.stdout


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "2"}


def _metrics(run: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics."""
    file = run / "metrics.jsonl"
    if not file.is_file():
        return []
    lines = file.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def _bits(run: Path) -> list[str]:
    """Digests of the last checkpoint's weights and moments."""
    step = latest_step(run)
    assert step is not None
    verify_step(step)
    return [sha256_of(step / f"{name}.safetensors") for name in ("trainable", "optimizer")]


def _difference(one: Path, other: Path) -> float:
    """The largest difference of a weight, relative to its tensor's largest."""
    from safetensors.torch import load_file

    steps = [latest_step(run) for run in (one, other)]
    mine, yours = (load_file(step / "trainable.safetensors") for step in steps if step)
    return max(
        float((mine[name] - yours[name]).abs().max() / mine[name].abs().max().clamp(min=1e-30))
        for name in mine
    )


def recipe(setting: Setting, world: Path, rehearse: bool, steps: int, every: int) -> dict[str, Any]:
    """The recipe of a setting: few layers, the head widths of the released models."""
    layers, heads = (2, 2) if rehearse else (4, 8)
    llama = {
        "model_type": "llama",
        "vocab_size": 400,
        "hidden_size": 128 * heads,
        "intermediate_size": 256 * heads,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 512,
    }
    t5 = {
        "model_type": "t5",
        "vocab_size": 400,
        "d_model": 64 * heads,
        "d_kv": 64,
        "d_ff": 128 * heads,
        "num_layers": layers,
        "num_heads": heads,
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu",
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
    }
    return {
        "name": setting.name,
        "output": "given on the command line",
        "seed": 3,
        "sharding": setting.sharding,
        "kernels": setting.kernels,
        "model": {
            "random_base": {
                "processor": str(world / "raw/processor"),
                # A T5 does not scale its scores: at 0.05 such wide heads see one key each.
                "initializer_range": 0.05 if setting.language == "llama" else 0.025,
                "vision": {
                    "hidden_size": 88 * heads,
                    "intermediate_size": 176 * heads,
                    "num_hidden_layers": layers,
                    "num_attention_heads": heads,
                    "image_size": 56,
                    "patch_size": 14,
                },
                "qformer": {
                    "vocab_size": 400,
                    "hidden_size": 64 * heads,
                    "intermediate_size": 128 * heads,
                    "num_hidden_layers": layers,
                    "num_attention_heads": heads,
                    "max_position_embeddings": 128,
                },
                "language": {"llama": llama, "t5": t5}[setting.language],
            },
            "train_parts": {
                "vision": "frozen",
                "qformer": "full",
                "projection": "full",
                "language": setting.parts,
            },
            "precision": setting.precision,
            "gradient_checkpointing": setting.recompute,
        },
        "data": {
            "mixture": [
                {"dataset": name, "path": str(world / "shards" / name)} for name in DATASETS
            ],
            "image_size": 56,
            "max_instruction_tokens": 96,
            "max_answer_tokens": 64,
            "workers": 0,
        },
        "training": {
            "steps": steps,
            "global_batch": 8 if rehearse else 32,
            "micro_batch": 4 if rehearse else 16,
            "learning_rate": 2.0e-3,
            "warmup_steps": 4,
            "log_every": 1,
        },
        "checkpoint": {"every": every, "keep": 3},
    }
