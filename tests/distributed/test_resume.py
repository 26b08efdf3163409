"""A killed run, started again by the same command, is bitwise the run that was never killed."""

import json
import random
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ibtrain.data.mixture.shares import resolve_mixture
from ibtrain.files import sha256_of
from ibtrain.run_directory import checkpoints, latest_step, verify_step, whole_steps
from tests.distributed.conftest import Zygote, tiny_recipe

KILLS = ("start", "write", *("step", "step", "write", "step") * 2)
STEPS = 60


def command(world_directory: Path, output: Path, *overrides: str) -> list[str]:
    return ["train", str(world_directory / "tiny.yaml"), f"output={output}", *overrides]


def final_files(run: Path, steps: int = STEPS) -> dict[str, str]:
    """Digests of the last step's weights and moments."""
    step = latest_step(run)
    assert step is not None
    assert verify_step(step) == steps
    return {name: sha256_of(step / f"{name}.safetensors") for name in ("trainable", "optimizer")}


@pytest.fixture(scope="module")
def quiet_run(zygote: Zygote, world_directory: Path, tmp_path_factory) -> Path:
    """All steps on two ranks without interruption."""
    run = tmp_path_factory.mktemp("quiet") / "run"
    zygote.run(2, "tests.distributed.zygote:run_cli", *command(world_directory, run))
    return run


def test_ten_kills_change_nothing(
    zygote: Zygote, world_directory: Path, quiet_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    moments = random.Random(0)
    killed_inside_a_write = 0
    for moment in KILLS:
        group = zygote.start_ibtrain(2, *command(world_directory, run))
        if moment == "start":
            time.sleep(moments.uniform(0.5, 2.0))
        elif moment == "write":
            group.wait_until(lambda: any(run.glob("incarnations/*/step-*")))
        else:
            # Past one checkpoint (there is one every four steps), so that the chain moves on.
            group.wait_for_steps(moments.randint(4, 7))
            time.sleep(moments.uniform(0.0, 0.05))
        group.kill()
        assert group.wait() == [-9, -9], group.output()
        killed_inside_a_write += any(run.glob("incarnations/*/step-*"))
        for step in whole_steps(run):
            verify_step(step)  # whatever stands there is whole
    assert killed_inside_a_write >= 1
    group = zygote.start_ibtrain(2, *command(world_directory, run))
    assert group.wait() == [0, 0], group.output()
    assert "going on from step-" in group.output()
    assert final_files(run) == final_files(quiet_run)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))  # one uninterrupted record


@pytest.mark.parametrize("sharding", [None, "zero2"])
def test_bf16_resumes_bitwise(
    zygote: Zygote, world_directory: Path, tmp_path: Path, sharding: str | None
) -> None:
    """The fp32 master weights are what is kept, not the bf16 ones that they were rounded to."""
    overrides = ["model.precision=bf16", "training.steps=8"]
    overrides += [f"sharding={sharding}"] if sharding else []
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    zygote.run(2, "tests.distributed.zygote:run_cli", *command(world_directory, quiet, *overrides))
    group = zygote.start_ibtrain(2, *command(world_directory, killed, *overrides))
    group.wait_for_steps(5)
    group.kill()
    assert group.wait() == [-9, -9], group.output()
    group = zygote.start_ibtrain(2, *command(world_directory, killed, *overrides))
    assert group.wait() == [0, 0], group.output()
    assert "going on from step-00000004" in group.output()
    starts = [json.loads(line) for line in (killed / "starts.jsonl").read_text().splitlines()]
    assert [(start["step"], start["world_size"]) for start in starts] == [(0, 2), (4, 2)]
    assert final_files(killed, 8) == final_files(quiet, 8)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_resumed_on_another_number_of_ranks(
    zygote: Zygote, world_directory: Path, quiet_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = "tests.distributed.zygote:run_cli"
    zygote.run(2, job, *command(world_directory, run, "checkpoint.every=20"))
    resumed = command(
        world_directory, run, "checkpoint.resume_from=step-00000040", "checkpoint.every=20"
    )
    group = zygote.run(1, job, *resumed)
    assert "going on from step-00000040" in group.output()
    assert [path.name for path in checkpoints(run).glob("superseded-*")] == [
        "superseded-step-00000060"
    ]
    assert losses(run) == pytest.approx(losses(quiet_run), rel=2e-4)
    quiet = load_file(latest_step(quiet_run) / "trainable.safetensors")
    other = load_file(latest_step(run) / "trainable.safetensors")
    for name, tensor in quiet.items():
        assert (other[name] - tensor).norm() <= 2e-3 * tensor.norm() + 1e-4, name


def order_of(zygote: Zygote, directory: Path, out: Path, world: int, first: int, *more) -> list:
    file = out / f"order-{world}-{first}-{len(more)}.json"
    zygote.run(
        world,
        "tests.distributed.jobs:sample_order",
        *(
            str(directory / "tiny.yaml"),
            str(file),
            str(first),
            "40",
            f"output={out / 'run'}",
            *more,
        ),
    )
    return json.loads(file.read_text())


def test_the_samples_left_are_the_same_on_any_number_of_ranks(
    zygote: Zygote, world_directory: Path, tmp_path: Path
) -> None:
    """An epoch has 16 steps here: step 21 lies in the second, 32 begins the third."""
    alone = order_of(zygote, world_directory, tmp_path, 1, 0)
    assert len(alone) == 40
    assert all(len(batch) == 8 for _, batch in alone)
    drawn = [tuple(sample) for _, batch in alone[:16] for sample in batch]
    recipe = tiny_recipe(world_directory)
    for dataset in resolve_mixture(recipe.data, recipe.training.global_batch).datasets:
        given = sum(name == dataset.name for name, _ in drawn)
        assert abs(given - dataset.samples_per_epoch) <= 1, dataset
    for world, first, more in (
        (2, 0, []),
        (4, 0, []),
        (2, 21, []),
        (4, 32, []),
        (1, 13, []),
        (2, 13, ["data.workers=2"]),
    ):
        assert order_of(zygote, world_directory, tmp_path, world, first, *more) == alone[first:]
