"""The run directory on disk: step directories, manifests, the pointer to the latest.

    RUN/checkpoints/LATEST  RUN/checkpoints/step-00003000/{trainable,optimizer}.safetensors,
    state.json, MANIFEST.json

A step directory appears atomically: it is written elsewhere (fencing.py), synced, and renamed;
LATEST is replaced afterwards, atomically. A manifest holds every file's size and SHA-256, and its
own digest, so that one flipped byte anywhere is found.
"""

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ibtrain.fencing import INCARNATIONS, REPLACED, SUPERSEDED, Incarnation
from ibtrain.files import FileError, read_json, sha256_of, sync

MANIFEST = "MANIFEST.json"
LATEST = "LATEST"
TRAINABLE = "trainable.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
STARTS = "starts.jsonl"
STEP_FILES = (TRAINABLE, OPTIMIZER, STATE)
_STEP_NAME = re.compile(r"step-(\d{8,})")


class RunDirectoryError(FileError):
    """A run directory that cannot be used as it is; says what was found and what to do."""


def checkpoints(run: Path) -> Path:
    """Where a run's step directories lie."""
    return run / "checkpoints"


def step_name(step: int) -> str:
    """For example step-00003000."""
    return f"step-{step:08d}"


def step_of(directory: Path) -> int | None:
    """The step of a step directory's name, None for any other name."""
    match = _STEP_NAME.fullmatch(directory.name)
    return int(match.group(1)) if match else None


def _number(directory: Path) -> int:
    """The step of a step directory, 0 for a directory of any other name."""
    return step_of(directory) or 0


def whole_steps(run: Path) -> list[Path]:
    """Published step directories in ascending order (not verified)."""
    folder = checkpoints(run)
    found = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    steps = [(step, path) for path in found if (step := step_of(path)) is not None]
    return [path for _, path in sorted(steps)]


def latest_step(run: Path) -> Path | None:
    """The step directory that LATEST names, None when the run has no checkpoint.

    Raises:
        RunDirectoryError: when LATEST names something that is not there.
    """
    pointer = checkpoints(run) / LATEST
    if not pointer.is_file():
        # A kill between the first rename and the first LATEST leaves whole steps and no pointer.
        steps = whole_steps(run)
        return steps[-1] if steps else None
    name = pointer.read_text(encoding="utf-8", errors="replace").strip()
    directory = checkpoints(run) / name
    if _STEP_NAME.fullmatch(name) and not directory.is_dir():
        _put_back(directory)
    if not _STEP_NAME.fullmatch(name) or not directory.is_dir():
        raise RunDirectoryError(
            f"{pointer} names {name!r}, which is not a step directory beside it; write the name of "
            f"an existing one into it ({_names(whole_steps(run))})"
        )
    return directory


def _names(steps: list[Path]) -> str:
    return ", ".join(step.name for step in steps) or "there is none"


def _put_back(directory: Path) -> None:
    """Undoes a replacement that was killed between its two renames, if there was one."""
    for before in (directory.parent.parent / INCARNATIONS).glob(f"*/{REPLACED}{directory.name}"):
        with contextlib.suppress(OSError):  # another process put it back
            before.rename(directory)


def take_run(run: Path) -> Incarnation:
    """Takes a run directory, which is made where there is none, from whatever run holds it.

    Raises:
        OSError: when it cannot be written to.
        RuntimeError: when what an earlier run writes cannot be removed.
    """
    return Incarnation(run, checkpoints(run))


def publish_step(
    run: Path,
    step: int,
    write_files: Callable[[Path], None],
    incarnation: Incarnation | None = None,
) -> Path:
    """Writes a step directory whole: `write_files` fills a temporary directory, which is synced,
    given a manifest, renamed into place, and then named by LATEST.

    On an error nothing of it stays, and what was there before is untouched.

    Args:
        run: the run directory.
        step: which.
        write_files: writes the files of a step into a directory.
        incarnation: which holds the run directory; default: it is taken.

    Raises:
        FencedError: when a later incarnation has begun.
        OSError: what `write_files` or the file system raised (a full disk, for example).
    """
    held = incarnation or take_run(run)
    final = checkpoints(run) / step_name(step)
    temporary, before = held.directory / final.name, held.directory / f"{REPLACED}{final.name}"
    for left in (temporary, before):
        shutil.rmtree(left, ignore_errors=True)
    try:
        temporary.mkdir()
        write_files(temporary)
        _write_manifest(temporary, step)
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        if final.exists():  # the same step written again after a resume from an older one
            held.publish(final, before)
        held.publish(temporary, final)
        shutil.rmtree(before, ignore_errors=True)
        held.write(checkpoints(run) / LATEST, f"{final.name}\n")
    except BaseException:
        if before.exists() and not final.exists():
            held.publish(before, final)
        for left in (temporary, before):
            shutil.rmtree(left, ignore_errors=True)
        held.check()
        raise
    return final


def prune_steps(run: Path, keep: int, incarnation: Incarnation) -> None:
    """Removes all but the newest `keep` steps, never the one LATEST names.

    Each leaves its place before it is taken apart, so that a half-removed step is not a whole one.

    Raises:
        FencedError: when a later incarnation has begun.
        OSError: what the file system raised.
    """
    latest = latest_step(run)
    for directory in whole_steps(run)[:-keep]:
        if directory != latest:
            removed = incarnation.directory / f"pruned-{directory.name}"
            incarnation.publish(directory, removed)
            try:
                shutil.rmtree(removed)
            except OSError:
                incarnation.check()
                raise


def set_aside_newer(run: Path, step: Path, incarnation: Incarnation) -> None:
    """Makes `step` the latest again: newer step directories are renamed to superseded-step-….

    Raises:
        FencedError: when a later incarnation has begun.
        OSError: what the file system raised.
    """
    incarnation.write(checkpoints(run) / LATEST, f"{step.name}\n")
    for directory in whole_steps(run):
        if _number(directory) > _number(step):
            aside = directory.with_name(f"{SUPERSEDED}{directory.name}")
            moved = incarnation.directory / aside.name
            incarnation.publish(directory, moved)
            shutil.rmtree(aside, ignore_errors=True)
            incarnation.publish(moved, aside)


def _digest(manifest: dict[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _write_manifest(directory: Path, step: int) -> None:
    manifest: dict[str, Any] = {
        "format": 1,
        "step": step,
        "files": {
            name: {
                "bytes": (directory / name).stat().st_size,
                "sha256": sha256_of(directory / name),
            }
            for name in STEP_FILES
        },
    }
    manifest["digest"] = _digest(manifest)
    (directory / MANIFEST).write_bytes(_rendered(manifest))


def _rendered(manifest: dict[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=2) + "\n").encode()


def verify_step(directory: Path) -> int:
    """Checks every byte of a step directory against its manifest; returns the step.

    Raises:
        RunDirectoryError: naming the first file that is missing or differs.
    """
    remedy = _remedy(directory)
    try:
        manifest = read_json(directory / MANIFEST, remedy)
    except FileError as error:
        raise RunDirectoryError(str(error)) from error
    if (
        manifest.get("digest") != _digest(manifest)
        or manifest.get("format") != 1
        or (directory / MANIFEST).read_bytes() != _rendered(manifest)
    ):
        raise RunDirectoryError(
            f"{directory / MANIFEST} was changed after it was written; {remedy}"
        )
    for name in STEP_FILES:
        path, written = directory / name, manifest["files"][name]
        if not path.is_file():
            raise RunDirectoryError(f"checkpoint file {path} is missing; {remedy}")
        if path.stat().st_size != written["bytes"] or sha256_of(path) != written["sha256"]:
            raise RunDirectoryError(
                f"checkpoint file {path} is not what was written ({path.stat().st_size} bytes "
                f"found, {written['bytes']} written, SHA-256 differs); {remedy}"
            )
    step: int = manifest["step"]
    if step_of(directory) not in (step, None):
        raise RunDirectoryError(
            f"{directory} was written as {step_name(step)} and renamed; rename it back, or {remedy}"
        )
    return step


def _remedy(directory: Path) -> str:
    others = [
        step.name
        for step in whole_steps(directory.parent.parent)
        if _number(step) < _number(directory) and (step / MANIFEST).is_file()
    ]
    if not others:
        return "there is no older checkpoint: copy it again, or start in a new output directory"
    return f"to go on from the one before, add checkpoint.resume_from={others[-1]}"
