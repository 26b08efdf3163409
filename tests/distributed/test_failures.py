"""What a person meets when something is wrong: one clear sentence, the right exit code, no hang.

Exit codes: 1 the job failed, 2 the request was wrong, 3 interrupted after a saved checkpoint.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from ibtrain.files import sha256_of
from ibtrain.run_directory import (
    MANIFEST,
    STEP_FILES,
    checkpoints,
    latest_step,
    step_of,
    verify_step,
    whole_steps,
)
from tests.distributed.conftest import Group, Zygote

STEPS = 12
NO_HANG = 60  # seconds, with everything that a start takes


def start(zygote: Zygote, world: Path, run: Path, *overrides: str, ranks: int = 2) -> Group:
    """Starts the tiny recipe of a world directory: 12 steps, a checkpoint at 4, 8 and 12."""
    return zygote.start_ibtrain(
        ranks,
        *("train", str(world / "tiny.yaml"), f"output={run}", f"root={world}"),
        *(f"training.steps={STEPS}", "checkpoint.keep=3", *overrides),
    )


def sentence(group: Group, code: int) -> str:
    """What rank 0 complained of, alone; every rank must have ended with `code`, no traceback."""
    codes = group.wait(NO_HANG)
    printed, *others = (group.output(rank) for rank in range(len(group.pids)))
    assert codes == [code] * len(group.pids), printed
    assert "Traceback" not in printed
    for other in others:
        assert "ibtrain: " not in other and "Traceback" not in other
    (complaint,) = re.findall(r"^ibtrain: (.*)", printed, re.MULTILINE | re.DOTALL)
    return complaint


def succeeds(group: Group) -> str:
    """What rank 0 printed of a run that must end well."""
    codes = group.wait()
    assert codes == [0] * len(group.pids), group.output()
    return group.output()


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def digests(step: Path) -> dict[str, str]:
    """Of the weights and the moments of a verified step."""
    verify_step(step)
    return {name: sha256_of(step / name) for name in STEP_FILES if name.endswith(".safetensors")}


@pytest.fixture(scope="module")
def finished(zygote: Zygote, world_directory: Path, tmp_path_factory) -> Path:
    """A run that nothing disturbed; do not write into it."""
    run = tmp_path_factory.mktemp("finished") / "run"
    succeeds(start(zygote, world_directory, run))
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """The finished run, copied."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def world(world_directory: Path, tmp_path: Path) -> Path:
    """The world, copied."""
    return Path(shutil.copytree(world_directory, tmp_path / "world"))


@pytest.mark.parametrize(
    ("overrides", "ranks", "expected"),
    [
        (["training.global_bach=8"], 1, r"tiny\.yaml: unknown key .*'global_batch'"),
        (["data.image_size=32"], 1, r"the base's vision tower takes 16: set data\.image_size=16"),
        (["sharding=zero9"], 2, r"'zero9' is neither a file nor one of .*zero1, zero2, zero3"),
        (["training.global_batch=9"], 2, r"is 9, .* 2 ranks; choose a multiple of 2"),
        (["checkpoint.resume_from=step-00000004"], 1, r"'step-00000004', which is not .*is none"),
    ],
)
def test_a_slip_in_the_recipe(
    zygote: Zygote,
    world_directory: Path,
    tmp_path: Path,
    overrides: list,
    ranks: int,
    expected: str,
) -> None:
    group = start(zygote, world_directory, tmp_path / "run", *overrides, ranks=ranks)
    assert re.search(expected, sentence(group, 2))
    assert not (tmp_path / "run/recipe.yaml").exists()


def test_a_slip_that_one_rank_meets(zygote: Zygote, world_directory: Path, tmp_path: Path) -> None:
    """As where a directory is missing on one node: all end alike, and the first tells of it."""
    group = zygote.start(
        2,
        "tests.distributed.jobs:another_recipe_on_rank_one",
        *("train", str(world_directory / "tiny.yaml"), f"output={tmp_path / 'run'}"),
        *(f"root={world_directory}", f"model.base={tmp_path / 'absent'}"),
    )
    told = rf"rank 1 on {re.escape(socket.gethostname())}: {tmp_path / 'absent'} is not a model"
    assert re.match(told, sentence(group, 2))


def test_missing_shards(zygote: Zygote, world: Path, tmp_path: Path) -> None:
    shutil.rmtree(world / "shards/vqav2")
    complaint = sentence(start(zygote, world, tmp_path / "run", ranks=1), 2)
    assert str(world / "shards/vqav2") in complaint
    assert "ibtrain data prepare" in complaint


def test_a_truncated_shard(zygote: Zygote, world: Path, tmp_path: Path) -> None:
    (shard,) = (world / "shards/vqav2").glob("shard.*")
    os.truncate(shard, shard.stat().st_size - 1)
    complaint = sentence(start(zygote, world, tmp_path / "run"), 2)
    assert str(shard) in complaint
    assert "ibtrain data verify --repair-from" in complaint


def test_more_tokens_than_embeddings(zygote: Zygote, world: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world / "base", local_files_only=True)
    tokenizer.add_tokens([f"<added-{number}>" for number in range(3)])
    tokenizer.save_pretrained(world / "base")
    complaint = sentence(start(zygote, world, tmp_path / "run", ranks=1), 2)
    assert str(world / "base") in complaint
    assert f"{len(tokenizer)}" in complaint and f"{len(tokenizer) - 3}" in complaint


def test_a_flipped_byte_in_a_checkpoint(
    zygote: Zygote, world_directory: Path, finished: Path, run: Path
) -> None:
    last = latest_step(run)
    for name in (*STEP_FILES, MANIFEST):
        whole = (last / name).read_bytes()
        flip_a_byte(last / name)
        complaint = sentence(start(zygote, world_directory, run, ranks=1), 2)
        assert str(last / name) in complaint
        (advice,) = re.findall(r"add (checkpoint\.resume_from=\S+)", complaint)
        assert advice == "checkpoint.resume_from=step-00000008"
        if name != MANIFEST:
            (last / name).write_bytes(whole)
    assert "going on from step-00000008" in succeeds(start(zygote, world_directory, run, advice))
    assert digests(last) == digests(latest_step(finished))
    assert (checkpoints(run) / f"superseded-{last.name}").is_dir()
    # The advice stays in the command; given again (a requeued job), it undoes nothing.
    assert "going on from step-00000012" in succeeds(
        start(zygote, world_directory, run, advice, ranks=1)
    )


def test_other_data_than_the_checkpoint_had(
    zygote: Zygote, world_directory: Path, run: Path
) -> None:
    recipe = (run / "recipe.yaml").read_bytes()
    changed = ("data.balance=uniform", "training.steps=13")
    complaint = sentence(start(zygote, world_directory, run, *changed, ranks=1), 2)
    assert str(latest_step(run)) in complaint
    assert re.search(r"^  datasets\.vqav2\.share: was 0\.\d+, is 0\.3333", complaint, re.MULTILINE)
    assert "checkpoint.accept_changed_data=true" in complaint
    assert (run / "recipe.yaml").read_bytes() == recipe  # refused, so nothing was touched
    named = "checkpoint.accept_changed_data=[datasets.vqav2]"
    complaint = sentence(start(zygote, world_directory, run, *changed, named, ranks=1), 2)
    assert "datasets.vqav2." not in complaint and "datasets.aokvqa.share: was" in complaint
    named = "checkpoint.accept_changed_data=[datasets]"
    succeeds(start(zygote, world_directory, run, *changed, named))
    assert verify_step(latest_step(run)) == 13
    changed = ("seed=9", "training.steps=14", "checkpoint.accept_changed_data=true")
    succeeds(start(zygote, world_directory, run, "data.balance=uniform", *changed))
    assert verify_step(latest_step(run)) == 14


def test_of_two_runs_in_a_directory_the_later_goes_on(
    zygote: Zygote, world_directory: Path, tmp_path: Path
) -> None:
    """The first stands still while the second starts, as a task of a node that was given up may,
    and then wakes up while the second trains.
    """
    # A rate that does not hang on the number of steps: the two runs have other numbers.
    constant = "training.min_learning_rate=1.0e-2"
    quiet, run = tmp_path / "quiet", tmp_path / "run"
    succeeds(start(zygote, world_directory, quiet, constant))
    first = start(zygote, world_directory, run, constant, "training.steps=4000")
    first.wait_until(lambda: latest_step(run) is not None)
    for pid in first.pids:
        os.kill(pid, signal.SIGSTOP)
    # One that is refused takes nothing away.
    assert "is 9, " in sentence(start(zygote, world_directory, run, "training.global_batch=9"), 2)
    changed = start(zygote, world_directory, run, "data.balance=uniform", ranks=1)
    assert "was trained on other data" in sentence(changed, 2)
    second = start(zygote, world_directory, run, constant)
    second.wait_until(lambda: "going on from step-" in second.output())
    for pid in first.pids:
        os.kill(pid, signal.SIGCONT)
    complaint = sentence(first, 1)
    by = f"(process {second.pids[0]} on {socket.gethostname()})"
    assert complaint.startswith(f"{run} was taken over by a later start {by}")
    succeeds(second)
    assert step_of(latest_step(run)) == STEPS
    assert digests(latest_step(run)) == digests(latest_step(quiet))


def test_a_signal_to_one_rank(
    zygote: Zygote, world_directory: Path, finished: Path, tmp_path: Path
) -> None:
    """The rank that does not write checkpoints is told to stop: all agree on it."""
    group = start(zygote, world_directory, tmp_path / "run")
    group.wait_for_steps(1)
    os.kill(group.pids[1], signal.SIGTERM)
    assert group.wait(NO_HANG) == [3, 3], group.output()
    stopped = latest_step(tmp_path / "run")
    assert 0 < verify_step(stopped) < STEPS
    assert f"interrupted after step {step_of(stopped)}, run directory" in group.output()
    printed = succeeds(start(zygote, world_directory, tmp_path / "run"))
    assert f"going on from {stopped.name}" in printed
    assert digests(latest_step(tmp_path / "run")) == digests(latest_step(finished))


def test_without_instructions_in_the_qformer(
    zygote: Zygote, world_directory: Path, tmp_path: Path
) -> None:
    overrides = ("model.instruction_aware=false", "training.steps=2")
    succeeds(start(zygote, world_directory, tmp_path / "run", *overrides))
    assert verify_step(latest_step(tmp_path / "run")) == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes of its own."""
    directory = tmp_path / "disk"
    directory.mkdir()
    if os.geteuid() != 0:
        pytest.skip("a small file system can be mounted by root only")
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(directory)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all the space that is left."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return ballast


def until_full(group: Group, run: Path, disk: Path) -> Path:
    """Fills the disk after the first checkpoint and waits for the warning; returns the ballast."""
    group.wait_until(lambda: latest_step(run) is not None)
    ballast = fill(disk)
    group.wait_until(lambda: "could not be written" in group.output())
    return ballast


def test_a_disk_that_is_full_for_a_while(
    zygote: Zygote, world_directory: Path, small_disk: Path, tmp_path: Path
) -> None:
    run, cache = small_disk / "run", f"data.cache={tmp_path / 'cache'}"
    group = start(zygote, world_directory, run, cache, "checkpoint.every=2")
    ballast = until_full(group, run, small_disk)
    kept = whole_steps(run)
    assert kept
    assert all(verify_step(step) == step_of(step) for step in kept)
    assert latest_step(run) == kept[-1]
    ballast.unlink()
    printed = succeeds(group)
    assert re.search(
        rf"checkpoint of step \d+ could not be written to {run} \(.*No space left.*\); training "
        "goes on, earlier checkpoints are untouched; free space",
        printed,
    )
    assert verify_step(latest_step(run)) == STEPS


def test_a_disk_that_stays_full(
    zygote: Zygote, world_directory: Path, finished: Path, small_disk: Path, tmp_path: Path
) -> None:
    run, cache = small_disk / "run", f"data.cache={tmp_path / 'cache'}"
    group = start(zygote, world_directory, run, cache)
    ballast = until_full(group, run, small_disk)
    complaint = sentence(group, 1)
    kept = latest_step(run)
    assert f"the last one kept is of step {verify_step(kept)}; free space" in complaint
    assert str(run) in complaint
    assert "No space left" in sentence(start(zygote, world_directory, run, cache, ranks=1), 1)
    assert verify_step(latest_step(run)) == step_of(kept)
    ballast.unlink()
    printed = succeeds(start(zygote, world_directory, run, cache))
    assert f"going on from {kept.name}" in printed
    assert digests(latest_step(run)) == digests(latest_step(finished))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.instruction_aware=false", "instruction_aware=true, and the recipe says false"),
        ("model.train_parts.qformer=frozen", r"train_parts=\{.*qformer: full, .*qformer: frozen, "),
    ],
)
def test_another_model_than_the_checkpoint_had(
    zygote: Zygote, world_directory: Path, run: Path, override: str, said: str
) -> None:
    told = sentence(start(zygote, world_directory, run, override), code=2)
    assert re.search(rf"was trained with model\.{said}", told), told
