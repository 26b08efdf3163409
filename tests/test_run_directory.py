import errno
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ibtrain.files import write_whole
from ibtrain.run_directory import (
    LATEST,
    MANIFEST,
    STEP_FILES,
    RunDirectoryError,
    checkpoints,
    latest_step,
    prune_steps,
    publish_step,
    set_aside_newer,
    step_name,
    step_of,
    take_run,
    verify_step,
    whole_steps,
)

OPERATIONS = ("mkdir", "rename", "replace", "fsync", "open", "unlink", "rmdir", "scandir")


def writer(text: str = "") -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        for name in STEP_FILES:
            (directory / name).write_text(f"{name} {text}")

    return write


def publish(run: Path, *steps: int, text: str = "") -> None:
    for step in steps:
        publish_step(run, step, writer(f"{step} {text}"))


def names(run: Path) -> list[str]:
    return sorted(path.name for path in checkpoints(run).iterdir())


def test_step_names():
    assert step_name(3000) == "step-00003000"
    assert step_name(123456789) == "step-123456789"
    for name, step in (
        ("step-00003000", 3000),
        ("step-123456789", 123456789),
        ("step-3000", None),
        (".writing-step-00003000", None),
        ("step-00003000.old", None),
        ("superseded-step-00003000", None),
    ):
        assert step_of(Path("anywhere") / name) == step


def test_a_published_step(tmp_path):
    directory = publish_step(tmp_path, 20, writer("x"))
    assert directory == tmp_path / "checkpoints" / "step-00000020"
    assert names(tmp_path) == [LATEST, "step-00000020"]
    assert (checkpoints(tmp_path) / LATEST).read_text() == "step-00000020\n"
    assert sorted(path.name for path in directory.iterdir()) == sorted([MANIFEST, *STEP_FILES])
    content = {
        "format": 1,
        "step": 20,
        "files": {
            name: {
                "bytes": len(f"{name} x"),
                "sha256": hashlib.sha256(f"{name} x".encode()).hexdigest(),
            }
            for name in ("trainable.safetensors", "optimizer.safetensors", "state.json")
        },
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    assert json.loads((directory / MANIFEST).read_text()) == content | {"digest": digest}
    assert verify_step(directory) == 20
    assert latest_step(tmp_path) == directory


def test_an_empty_run(tmp_path):
    assert latest_step(tmp_path) is None
    assert whole_steps(tmp_path / "absent") == []
    checkpoints(tmp_path).mkdir()
    assert latest_step(tmp_path) is None


def test_steps_ascend(tmp_path):
    publish(tmp_path, 20, 100, 3)
    assert [step_of(path) for path in whole_steps(tmp_path)] == [3, 20, 100]
    assert latest_step(tmp_path) == checkpoints(tmp_path) / "step-00000003"  # the last published


def test_the_same_step_again_replaces_it(tmp_path):
    publish(tmp_path, 20, text="first")
    publish(tmp_path, 20, text="second")
    assert names(tmp_path) == [LATEST, "step-00000020"]
    assert (checkpoints(tmp_path) / "step-00000020/state.json").read_text().endswith("second")
    assert verify_step(checkpoints(tmp_path) / "step-00000020") == 20


def test_every_flipped_byte_is_found(tmp_path):
    """Each byte of the four files is changed to others: inverted, one bit, case, another blank."""
    directory = publish_step(tmp_path, 20, writer("some weights"))
    tried = 0
    for name in (MANIFEST, *STEP_FILES):
        file = directory / name
        whole = file.read_bytes()
        for place, byte in enumerate(whole):
            others = {byte ^ 0xFF, byte ^ 0x01, byte ^ 0x20}
            if byte in b" \n":
                others |= {0x20, 0x09, 0x0A, 0x0D}  # what JSON would not notice
            for other in others - {byte}:
                file.write_bytes(whole[:place] + bytes([other]) + whole[place + 1 :])
                found = None
                try:
                    verify_step(directory)
                except RunDirectoryError as error:
                    found = str(error)
                assert found is not None and str(file) in found, (name, place, other)
                tried += 1
        file.write_bytes(whole)
        assert verify_step(directory) == 20
    assert tried > 2000


@pytest.mark.parametrize("name", [MANIFEST, *STEP_FILES])
@pytest.mark.parametrize("change", ["cut", "longer", "empty", "missing"])
def test_a_file_of_another_length_is_found(tmp_path, name, change):
    directory = publish_step(tmp_path, 20, writer())
    file = directory / name
    whole = file.read_bytes()
    if change == "missing":
        file.unlink()
    else:
        file.write_bytes({"cut": whole[:-1], "longer": whole + b"\n", "empty": b""}[change])
    with pytest.raises(RunDirectoryError, match=f"{name}.*there is no older checkpoint"):
        verify_step(directory)


def test_the_remedy_names_the_step_before(tmp_path):
    publish(tmp_path, 10, 20, 30)
    broken = checkpoints(tmp_path) / "step-00000020" / "state.json"
    broken.write_text("{}")
    with pytest.raises(RunDirectoryError) as caught:
        verify_step(broken.parent)
    assert str(caught.value) == (
        f"checkpoint file {broken} is not what was written (2 bytes found, 14 written, SHA-256 "
        "differs); to go on from the one before, add checkpoint.resume_from=step-00000010"
    )


@pytest.mark.parametrize("text", ["step-00000030", "../elsewhere", "", "\x00", "step-00000020/.."])
def test_a_pointer_to_nothing_is_an_error(tmp_path, text):
    publish(tmp_path, 10, 20)
    (tmp_path / "elsewhere").mkdir()
    (checkpoints(tmp_path) / LATEST).write_text(text)
    with pytest.raises(RunDirectoryError, match=r"LATEST names .*step-00000010, step-00000020"):
        latest_step(tmp_path)


def test_without_a_pointer_the_newest_step_counts(tmp_path):
    publish(tmp_path, 10, 20)
    (checkpoints(tmp_path) / LATEST).unlink()
    assert latest_step(tmp_path) == checkpoints(tmp_path) / "step-00000020"


class Killed(BaseException):
    """Stands for the end of the process."""


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, number: int, fails: Callable[[int], None]) -> Iterator:
    """Calls `fails` with the count of every file operation from the `number`-th on."""
    count = 0

    def wrap(original: Callable) -> Callable:
        def call(*arguments: object, **options: object) -> object:
            nonlocal count
            count += 1
            if count > number:
                fails(count - number)
            return original(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(os, name, wrap(getattr(os, name)))
        patch.setattr(io, "open", wrap(io.open))
        yield


def full_disk(count: int) -> None:
    if count == 1:
        raise OSError(errno.ENOSPC, "No space left on device")


def kill(count: int) -> None:
    raise Killed  # nothing that comes after reaches the disk either, the cleaning up included


SITUATIONS = {  # steps before, and the one that is published
    "the first step": ((), 10),
    "a later step": ((10,), 20),
    "a step left over": ((20, 10), 20),  # a resume from 10 gets to 20 again
    "the latest step again": ((10, 20), 20),
    "the only step again": ((20,), 20),
}


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("fails", [full_disk, kill])
def test_a_crash_anywhere_leaves_a_whole_latest_step(tmp_path, monkeypatch, situation, fails):
    before, step = SITUATIONS[situation]
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # counted below, and slow
    crashes = 0
    for number in range(200):
        run = tmp_path / f"run-{number}"
        publish(run, *before, text="old")
        try:
            with failing(monkeypatch, number, fails):
                publish(run, step, text="new")
        except (OSError, Killed):
            crashes += 1
            finished = False
        else:
            finished = True
        if fails is full_disk:  # the process lives, and has put everything back already
            assert {step_of(directory) for directory in whole_steps(run)} >= set(before)
        latest = latest_step(run)
        if latest is None:
            assert not before and not finished
        else:
            assert verify_step(latest) == step_of(latest)
            assert step_of(latest) in {*before[-1:], step}
        for directory in whole_steps(run):
            assert verify_step(directory) == step_of(directory)
        if fails is full_disk and checkpoints(run).is_dir():
            left = (run / "incarnations").glob("*/*")
            kept = {"holder", f"replaced-{step_name(step)}"}  # which the next start removes
            assert {path.name for path in left} <= kept, number
        publish(run, step, text="again")  # and the run goes on
        prune_steps(run, 5, take_run(run))
        assert set(names(run)) == {LATEST, *map(step_name, {*before, step})}
        latest = latest_step(run)
        assert latest is not None and verify_step(latest) == step
        assert (latest / "state.json").read_text().endswith("again")
        if finished and number > crashes + 5:
            break
    assert crashes > 15


def test_an_error_while_writing_leaves_nothing(tmp_path):
    publish(tmp_path, 10)

    def write(directory: Path) -> None:
        (directory / "trainable.safetensors").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        publish_step(tmp_path, 20, write)
    assert names(tmp_path) == [LATEST, "step-00000010"]
    assert latest_step(tmp_path) == checkpoints(tmp_path) / "step-00000010"


def test_pruning_keeps_the_newest_and_the_latest(tmp_path):
    publish(tmp_path, 10, 20, 30, 40)
    prune_steps(tmp_path, 2, take_run(tmp_path))
    assert names(tmp_path) == [LATEST, "step-00000030", "step-00000040"]
    write_whole(checkpoints(tmp_path) / LATEST, "step-00000030\n")
    prune_steps(tmp_path, 1, take_run(tmp_path))
    assert names(tmp_path) == [LATEST, "step-00000030", "step-00000040"]


def test_what_a_killed_run_left_is_passed_over_and_removed(tmp_path):
    publish(tmp_path, 10)
    killed = take_run(tmp_path)
    for leftover in ("step-00000020", "replaced-step-00000010"):
        (killed.directory / leftover).mkdir()
        (killed.directory / leftover / "state.json").write_text("{}")
    assert whole_steps(tmp_path) == [checkpoints(tmp_path) / "step-00000010"]
    assert latest_step(tmp_path) == checkpoints(tmp_path) / "step-00000010"
    held = take_run(tmp_path)
    assert not killed.directory.exists()
    assert [path.name for path in (tmp_path / "incarnations").iterdir()] == [held.directory.name]
    assert names(tmp_path) == [LATEST, "step-00000010"]
    assert verify_step(checkpoints(tmp_path) / "step-00000010") == 10


def test_newer_steps_are_set_aside(tmp_path):
    publish(tmp_path, 10, 20, 30)
    set_aside_newer(tmp_path, checkpoints(tmp_path) / "step-00000010", take_run(tmp_path))
    kept = [LATEST, "step-00000010", "superseded-step-00000020", "superseded-step-00000030"]
    assert names(tmp_path) == kept
    assert latest_step(tmp_path) == checkpoints(tmp_path) / "step-00000010"
    publish(tmp_path, 20, text="other")
    set_aside_newer(tmp_path, checkpoints(tmp_path) / "step-00000010", take_run(tmp_path))
    assert names(tmp_path) == kept
    again = checkpoints(tmp_path) / "superseded-step-00000020"
    assert (again / "state.json").read_text().endswith("other")


def test_a_renamed_step_is_refused(tmp_path):
    publish(tmp_path, 10, 20)
    renamed = checkpoints(tmp_path) / "step-00000030"
    (checkpoints(tmp_path) / "step-00000020").rename(renamed)
    with pytest.raises(
        RunDirectoryError,
        match=r"written as step-00000020 and renamed.*checkpoint\.resume_from=step-00000010",
    ):
        verify_step(renamed)
    kept = renamed.rename(tmp_path / "best")  # a name that claims no step
    assert verify_step(kept) == 20


def test_steps_of_more_digits_are_newer(tmp_path):
    publish(tmp_path, 99_999_999, 100_000_000)
    assert [step_of(path) for path in whole_steps(tmp_path)] == [99_999_999, 100_000_000]
    set_aside_newer(tmp_path, checkpoints(tmp_path) / "step-99999999", take_run(tmp_path))
    assert names(tmp_path) == [LATEST, "step-99999999", "superseded-step-100000000"]
