"""Replacing what differs in a shard directory by the same files of another copy of it.

The other copy is not trusted: a shard is taken only if it has the size and the hashes that the
index here speaks of, and an index or a card only if the other of the two, here, names it.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ibtrain.data.shards.card import CARD, card_differences, read_card
from ibtrain.data.shards.index import (
    INDEX,
    ShardFile,
    ShardIndex,
    fingerprint,
    open_inside,
    read_index,
)
from ibtrain.data.shards.records import stored_bytes, wrong_hashes
from ibtrain.data.shards.remote import fetch_file, local_directory
from ibtrain.data.shards.verify import VerifyReport, verify

_MAXIMUM_DOCUMENT_BYTES = 1 << 26


@dataclass(frozen=True)
class RepairReport:
    """What was replaced, what could not be and why, and what the directory is now."""

    replaced: tuple[str, ...]
    refused: tuple[str, ...]
    after: VerifyReport


def repair(
    directory: Path,
    source: str,
    before: VerifyReport,
    *,
    workers: int = 1,
    progress: bool = True,
) -> RepairReport:
    """Replaces the files of `directory` that differ from its index, each atomically.

    Args:
        directory: a shard directory that `verify` found fault with.
        source: another copy of it: a directory, or the URL of one.
        before: what `verify` found.
        workers: as for `verify`, which runs again on what was replaced.
        progress: show a bar on stderr.

    Raises:
        ValueError: the source is not there.
        OSError: a file cannot be written; what was replaced before stays.
    """
    directory_of_source = local_directory(source)
    if directory_of_source is not None and not directory_of_source.is_dir():
        raise ValueError(f"there is no directory {source} to repair {directory} from")
    replaced: list[str] = []
    refused: list[str] = []
    temporary = Path(tempfile.mkdtemp(prefix=".repair-", dir=directory))
    try:
        report = before
        if any(problem.shard in (INDEX, CARD) for problem in report.bad):
            _repair_document(directory, source, temporary, report, replaced, refused)
        if replaced:
            report = verify(directory, workers=workers, progress=progress, known=report.shards)
        for shard_report in report.shards:
            if shard_report.intact and shard_report.bad:
                refused.append(
                    f"{shard_report.shard.name}: the file is as the index says, so another copy "
                    "is no better; prepare the dataset again"
                )
            elif not shard_report.intact:
                _repair_shard(directory, source, temporary, shard_report.shard, replaced, refused)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    known = [found for found in report.shards if found.shard.name not in replaced]
    after = verify(directory, workers=workers, progress=progress, known=known)
    return RepairReport(tuple(replaced), tuple(refused), after)


def _repair_document(
    directory: Path,
    source: str,
    temporary: Path,
    report: VerifyReport,
    replaced: list[str],
    refused: list[str],
) -> None:
    """Replaces the index or the card, whichever of them the other one here says is wrong."""
    try:
        for name in (INDEX, CARD):
            _fetch(source, name, temporary, _MAXIMUM_DOCUMENT_BYTES)
        index, card = read_index(temporary), read_card(temporary)
        faults = list(card_differences(card, index))
        if faults:
            raise ValueError(f"its {CARD} {faults[0]}")
    except ValueError as error:
        text = str(error).replace(str(temporary), source)
        refused.append(f"{INDEX} and {CARD}: those of {source} cannot be used: {text}")
        return
    wrong = _wrong_document(report, index, card)
    if wrong is None:
        refused.append(
            f"{INDEX} and {CARD}: nothing here that is whole names those of {source}, so which "
            "data this was cannot be told; copy the whole directory anew"
        )
        return
    _replace(temporary / wrong, directory / wrong)
    replaced.append(wrong)


def _wrong_document(report: VerifyReport, index: ShardIndex, card: dict[str, Any]) -> str | None:
    """Which of index and card to take from a source whose two agree; None where it is unclear."""
    named = fingerprint(index)
    if report.card is not None and report.card["fingerprint"] == named:
        intact = report.index is not None and fingerprint(report.index) == named
        return CARD if intact else INDEX
    if report.index is not None and fingerprint(report.index) == card["fingerprint"]:
        return CARD
    return None


def _repair_shard(
    directory: Path,
    source: str,
    temporary: Path,
    shard: ShardFile,
    replaced: list[str],
    refused: list[str],
) -> None:
    try:
        _fetch(source, shard.name, temporary, shard.bytes)
        data = stored_bytes(ShardIndex(temporary, (shard,), shard.samples), shard)
        wrong = wrong_hashes(data, shard.hashes)
        if wrong:
            raise ValueError(f"{wrong} differs from the index here")
    except ValueError as error:
        text = str(error).replace(str(temporary), source)
        refused.append(f"{shard.name}: that of {source} cannot be used: {text}")
        return
    _replace(temporary / shard.name, directory / shard.name)
    replaced.append(shard.name)


def _fetch(source: str, name: str, temporary: Path, maximum_bytes: int) -> None:
    """Copies a file of the source; ValueError where it is not there, or larger than it may be."""
    directory = local_directory(source)
    if directory is None:
        fetch_file(f"{source.rstrip('/')}/{name}", temporary / name)
        return
    with open_inside(directory, name) as file, (temporary / name).open("wb") as copy:
        left = maximum_bytes + 1
        while left and (block := file.read(min(left, 1 << 20))):
            copy.write(block)
            left -= len(block)
        copy.flush()
        os.fsync(copy.fileno())
    if not left:
        raise ValueError(f"{directory / name}: larger than {maximum_bytes} bytes")


def _replace(whole: Path, target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        raise OSError(f"{target} is a folder; remove it and repair again")
    whole.replace(target)
