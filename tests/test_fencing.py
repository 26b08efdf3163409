"""Of several incarnations the latest holds the run directory; the others publish nothing."""

import errno
import json
import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest

import ibtrain.fencing
from ibtrain.fencing import INCARNATIONS, FencedError
from ibtrain.run_directory import (
    STATE,
    STEP_FILES,
    checkpoints,
    latest_step,
    prune_steps,
    publish_step,
    set_aside_newer,
    take_run,
    verify_step,
    whole_steps,
)


def writer(text: str = ""):
    def write(directory: Path) -> None:
        for name in STEP_FILES:
            (directory / name).write_text(text)

    return write


def content(run: Path) -> dict[str, bytes]:
    files = [path for path in run.rglob("*") if path.is_file() and INCARNATIONS not in path.parts]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def test_the_later_holds_the_directory(tmp_path):
    first = take_run(tmp_path)
    first.check()
    second = take_run(tmp_path)
    second.check()
    assert not first.holds() and second.holds()
    with pytest.raises(FencedError) as refused:
        first.check()
    assert str(refused.value) == (
        f"{tmp_path} was taken over by a later start (process {os.getpid()} on "
        f"{os.uname().nodename}), which goes on from the last checkpoint; this one ends and "
        "publishes nothing more"
    )
    assert [path.name[:8] for path in (tmp_path / INCARNATIONS).iterdir()] == ["00000002"]


def test_the_job_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    first = take_run(tmp_path)
    take_run(tmp_path)
    with pytest.raises(FencedError, match=r"later start \(job 17, restart 2, process \d+ on "):
        first.check()


def test_a_removed_directory_is_said_to_be(tmp_path):
    held = take_run(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "other")
    with pytest.raises(FencedError, match="incarnations was removed while this run was writing to"):
        held.check()


def test_what_the_loser_tries_changes_nothing(tmp_path):
    loser = take_run(tmp_path)
    for step in (10, 20, 30):
        publish_step(tmp_path, step, writer("first"), loser)
    loser.append(tmp_path / "metrics.jsonl", b"first\n")
    take_run(tmp_path)
    before = content(tmp_path)
    for attempt in (
        lambda: publish_step(tmp_path, 40, writer(), loser),
        lambda: publish_step(tmp_path, 20, writer(), loser),
        lambda: prune_steps(tmp_path, 1, loser),
        lambda: set_aside_newer(tmp_path, checkpoints(tmp_path) / "step-00000010", loser),
        lambda: loser.write(tmp_path / "recipe.yaml", "other"),
    ):
        with pytest.raises(FencedError):
            attempt()
    loser.append(tmp_path / "metrics.jsonl", b"more\n")
    assert content(tmp_path) == before


@pytest.mark.parametrize("moment", range(40))
def test_fenced_at_any_moment_of_a_publication(tmp_path, monkeypatch, moment):
    """Another run starts before the n-th operation of the loser's publication."""
    loser = take_run(tmp_path)
    publish_step(tmp_path, 10, writer("first"), loser)
    publish_step(tmp_path, 20, writer("first"), loser)
    counted, taken = 0, []
    originals = {name: getattr(os, name) for name in ("mkdir", "rename", "replace", "unlink")}

    def interposed(name):
        def operation(*arguments, **more):
            nonlocal counted
            counted += 1
            if counted == moment and not taken:
                taken.append(None)
                taken[0] = take_run(tmp_path), content(tmp_path)
            return originals[name](*arguments, **more)

        return operation

    with monkeypatch.context() as patch:
        for name in originals:
            patch.setattr(os, name, interposed(name))
        try:
            publish_step(tmp_path, 20, writer("second"), loser)
            prune_steps(tmp_path, 1, loser)
        except FencedError:
            assert taken
    if taken:
        held, seen = taken[0]
        assert content(tmp_path) == seen, "the loser published after it was fenced"
        held.check()
    for step in whole_steps(tmp_path):
        assert verify_step(step)
    latest = latest_step(tmp_path)
    assert latest is not None and latest.name == "step-00000020"


def test_a_line_that_is_just_written_is_not_in_the_file_that_follows(tmp_path):
    lines = tmp_path / "metrics.jsonl"
    loser = take_run(tmp_path)
    loser.append(lines, b"1\n")
    real, taken = type(loser).holds, []

    def taken_right_after(self):
        answer = real(self)
        if self is loser and not taken:
            taken.append(take_run(tmp_path))
            taken[0].write(lines, lines.read_bytes())
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(loser), "holds", taken_right_after)
        loser.append(lines, b"2\n")
    taken[0].append(lines, b"3\n")
    assert lines.read_text() == "1\n3\n"


def test_no_lock_is_needed(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refused)
    monkeypatch.setattr("fcntl.lockf", refused)
    publish_step(tmp_path, 10, writer())
    assert latest_step(tmp_path) == checkpoints(tmp_path) / "step-00000010"


def test_what_cannot_be_removed_is_told(tmp_path, monkeypatch):
    first = take_run(tmp_path)
    (first.directory / "stays").write_text("")
    monkeypatch.setattr(ibtrain.fencing, "_PAUSE", 0)
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    with pytest.raises(RuntimeError, match=r"of an earlier start cannot be removed \(.*stays"):
        take_run(tmp_path)


def race(run: Path, number: int) -> None:
    """Takes the run over, publishes steps one above the latest, and logs each."""
    time.sleep(random.Random(number).uniform(0, 0.2))
    try:
        held = take_run(run)
        latest = latest_step(run)
        step = 0 if latest is None else json.loads((latest / STATE).read_text())["step"]
        while step < 400:
            step += 1

            def write(directory: Path, step: int = step) -> None:
                for name in STEP_FILES:
                    (directory / name).write_text(json.dumps({"step": step, "by": number}))

            publish_step(run, step, write, held)
            prune_steps(run, 500, held)
    except FencedError:
        pass


def test_many_at_once_leave_one_history(tmp_path, monkeypatch):
    """Each step is published once by whoever then held the directory: none is skipped or undone."""
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    racing = [context.Process(target=race, args=(tmp_path, number)) for number in range(6)]
    for process in racing:
        process.start()
    for process in racing:
        process.join(timeout=60)
        assert process.exitcode == 0
    steps = whole_steps(tmp_path)
    assert [verify_step(step) for step in steps] == list(range(1, len(steps) + 1))
    assert latest_step(tmp_path) == steps[-1] and len(steps) == 400
    assert len(list((tmp_path / INCARNATIONS).iterdir())) == 1
