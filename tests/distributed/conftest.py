"""A toy world, a tiny base, and a way to start groups of real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ibtrain.config import Recipe, load_recipe
from ibtrain.data.preparation.prepare import prepare
from ibtrain.data.toy import write_toy
from tests.tiny import vocabularies, write_tiny_base

ROOT = Path(__file__).parents[2]
DATASETS = {"coco_caption": "coco", "vqav2": "vqav2", "aokvqa": "aokvqa"}


@dataclass
class Group:
    """One started group of ranks."""

    zygote: "Zygote"
    pids: list[int]
    log: Path

    def kill(self) -> None:
        """kill -9 of every rank."""
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)

    def wait(self, seconds: float = 240) -> list[int]:
        """Exit codes by rank, negative for a signal; after `seconds` what still runs is killed."""
        return self.zygote.ask({"wait": self.pids, "seconds": seconds})["codes"]

    def wait_until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Waits for something that the running group is to bring about."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.output()
            time.sleep(0.002)

    def wait_for_steps(self, count: int) -> None:
        """Waits until the group has reported so many steps."""
        self.wait_until(lambda: self.output().count("\nstep ") >= count)

    def output(self, rank: int = 0) -> str:
        """What a rank has printed so far."""
        file = Path(f"{self.log}.{rank}")
        return file.read_text() if file.exists() else ""


class Zygote:
    """The process that forks ranks (see zygote.py)."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.started = 0
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.zygote"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == {"ready": True}

    def _answer(self) -> dict[str, Any]:
        # Libraries may print on the way; answers are the lines that are JSON objects.
        while True:
            line = self.process.stdout.readline()
            assert line, "the zygote ended"
            if line.startswith("{"):
                return json.loads(line)

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def start(self, world: int, call: str, *arguments: str) -> Group:
        """Starts `world` ranks that run `call` ("module:function") on the arguments."""
        self.started += 1
        log = self.directory / f"group-{self.started}.log"
        order = {"world": world, "call": call, "arguments": list(arguments), "log": str(log)}
        return Group(self, self.ask(order)["pids"], log)

    def start_ibtrain(self, world: int, *arguments: str) -> Group:
        """Starts `ibtrain ARGUMENTS` on `world` ranks."""
        return self.start(world, "tests.distributed.zygote:run_cli", *arguments)

    def run(self, world: int, call: str, *arguments: str) -> Group:
        """Starts a group and waits for success."""
        group = self.start(world, call, *arguments)
        codes = group.wait()
        assert codes == [0] * world, "\n".join(group.output(rank) for rank in range(world))
        return group

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    process = Zygote(tmp_path_factory.mktemp("groups"))
    yield process
    process.close()


@pytest.fixture(scope="session")
def world_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small toy world with shards, and a tiny base of random weights."""
    directory = tmp_path_factory.mktemp("world")
    write_toy(directory / "raw", train_images=40, test_images=4)
    for dataset, folder in DATASETS.items():
        prepare(dataset, directory / "raw" / folder, directory / "shards" / dataset, progress=False)
    processor = directory / "raw/processor"
    write_tiny_base(directory / "base", processor, image_size=16)
    (directory / "tiny.yaml").write_text(RECIPE.format(root=directory))
    # Every parameter of the tiny model is small enough to stay whole under the shipped threshold.
    sharding = json.loads((ROOT / "ds_configs/zero3.json").read_text())
    del sharding["train_micro_batch_size_per_gpu"]  # of a file of one's own it would count
    sharding["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (directory / "partition-all.json").write_text(json.dumps(sharding))
    assert vocabularies(processor)
    return directory


RECIPE = """\
name: tiny
root: {root}
output: ${{root}}/runs/tiny
seed: 5
sharding: ${{root}}/partition-all.json
model:
  base: ${{root}}/base
  precision: fp32
data:
  mixture:
    - {{dataset: coco_caption, path: "${{root}}/shards/coco_caption"}}
    - {{dataset: vqav2, path: "${{root}}/shards/vqav2"}}
    - {{dataset: aokvqa, path: "${{root}}/shards/aokvqa"}}
  epoch_samples: 128
  image_size: 16
  max_instruction_tokens: 60
  workers: 0
training:
  steps: 60
  global_batch: 8
  micro_batch: 4
  learning_rate: 1.0e-2
  warmup_steps: 3
  gradient_clip: 1.0
  log_every: 1
checkpoint:
  every: 4
  keep: 2
"""


def tiny_recipe(directory: Path, *overrides: str) -> Recipe:
    """The recipe of the small world."""
    return load_recipe(str(directory / "tiny.yaml"), overrides)
