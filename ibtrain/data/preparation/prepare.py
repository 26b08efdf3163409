"""Raw files to shards: `ibtrain data prepare`.

The annotations are read once and cut into chunks (survey.py); chunks are converted by any number of
processes, machines and attempts (conversion.py); whoever finds all of them finished merges them
here. What comes out depends on none of that.

While the conversion lasts, the output directory holds `.parts/` and no index. The index comes last,
in one step, so a directory that can be read at all is whole.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ibtrain.data import catalog, instructions, readers
from ibtrain.data.answering import section_of
from ibtrain.data.preparation.conversion import Settings, convert_chunk, finished
from ibtrain.data.preparation.merging import (
    FAILED,
    Known,
    OverBudgetError,
    PrepareReport,
    check_budget,
    finish,
    is_shard,
    write_beside,
)
from ibtrain.data.preparation.survey import PLAN, Survey, load_survey, make_survey
from ibtrain.data.preparation.workers import Report, run_beside
from ibtrain.data.shards.card import CARD, QUARANTINE
from ibtrain.data.shards.index import INDEX, REBUILD
from ibtrain.data.shards.records import check_index
from ibtrain.defaults import FRAMES, QUARANTINE_BUDGET, SHORT_SIDE
from ibtrain.files import BusyError, locked

__all__ = ["BusyError", "OverBudgetError", "PrepareReport", "prepare"]

logger = logging.getLogger(__name__)

CHUNKS = ".parts"  # so called by earlier releases, whose unfinished conversions go on
_FORMAT = 2  # raise it when records are written otherwise
_REQUEST = "request.json"
_TEXTS = (".json", ".jsonl", ".csv", ".tsv", ".txt")
_SECONDS_TO_START = 1.0  # in which others that start look whether they are alone


def prepare(
    dataset: str,
    raw: Path,
    out: Path,
    *,
    split: str | None = None,
    workers: int = 1,
    portion: tuple[int, int] | None = None,
    progress: bool = True,
    budget: float = QUARANTINE_BUDGET,
    short_side: int = SHORT_SIDE,
    keep_original: bool = False,
    frames: int = FRAMES,
) -> PrepareReport:
    """Writes the shards of a split to `out`, atomically.

    Beside the shards lie card.json (counts, lengths, sizes, hashes of the source files, version of
    the templates) and quarantine.jsonl (id and reason of each bad annotation). Where `out` holds
    the result of the same request already, its report is returned and nothing is done; where it
    holds an unfinished one, that is finished.

    Args:
        dataset: a name in the catalog, or the path of a dataset's YAML file.
        raw: its raw directory; see catalog.py for what lies where.
        out: the directory to make.
        split: the dataset's first by default.
        workers: processes.
        portion: (i, n) converts the i-th of n portions, i from 1 to n; 0 stands for n, for arrays
            that count from 0. The last one to finish merges all.
        progress: show a bar on stderr.
        budget: the share of bad annotations above which the whole fails.
        short_side: pixels to which larger images are reduced.
        keep_original: never reduce images.
        frames: how many are taken of a video.

    Raises:
        ValueError: something is missing, `out` holds something else, or not one record is left.
        OverBudgetError: the budget is exceeded (the reasons then lie in `out`); a ValueError.
        BusyError: another process is writing to `out`.
    """
    _check_request(workers, portion, budget, short_side, frames)
    entry = catalog.get(dataset)
    split = split or entry.default_split
    settings = Settings(entry, raw, short_side, keep_original, frames)
    request = _request(settings, split)
    if (out / INDEX).is_file():
        return _existing_report(out, request)
    _refuse_foreign(out)
    chunks = out / CHUNKS
    chunks.mkdir(parents=True, exist_ok=True)
    _forget_faults(chunks)
    with _sole_or_shared(chunks, out, portion):
        with locked(chunks / "plan.lock"):
            if (out / INDEX).is_file():  # another process was faster
                shutil.rmtree(chunks, ignore_errors=True)
                return _existing_report(out, request)
            survey = _survey(chunks, out, settings, split, request)
            check_budget(Known.of(chunks, survey, range(0)), budget, request, out)
        own = _portion(survey.chunks, portion)
        arguments = (chunks, own, settings, budget, request, out)
        _convert(survey, arguments, workers, progress)
        with locked(chunks / "plan.lock"):
            if (out / INDEX).is_file():
                return _existing_report(out, request)
            return finish(chunks, out, survey, own, budget, request)


def _check_request(
    workers: int, portion: tuple[int, int] | None, budget: float, short_side: int, frames: int
) -> None:
    if workers < 1:
        raise ValueError(f"{workers} workers; at least 1 is needed")
    if portion is not None and not (portion[1] >= 1 and 0 <= portion[0] <= portion[1]):
        raise ValueError(f"part {portion[0]}/{portion[1]}: give i/n with i from 1 to n")
    if not 0 <= budget <= 1:
        raise ValueError(f"a budget of {budget}; it is a share of 0 to 1")
    if not 16 <= short_side <= 8192:
        raise ValueError(f"a short side of {short_side} pixels; 16 to 8192 can be had")
    if frames < 1:
        raise ValueError(f"{frames} frames of a video; at least 1 is needed")


def _request(settings: Settings, split: str) -> dict[str, Any]:
    """All that the result depends on, without a path of this machine."""
    entry = settings.entry
    sources = readers.annotation_files(settings.raw, split, entry)
    layout: dict[str, Any] = {
        "task": entry.task,
        "role": entry.role,
        "reader": entry.reader,
        "reader_options": entry.reader_options,
        "image_roots": entry.image_roots,
    }
    if readers.revision(entry) > 1:
        layout["revision"] = readers.revision(entry)
    section = section_of(entry.evaluation, entry.metric)
    known = entry.splits[split].sha256
    # What evaluation asks and scores a dataset of one's own by lies with its shards.
    shipped = entry.name in {known.name for known in catalog.entries()}
    return {
        "format": _FORMAT,
        "dataset": entry.name,
        "split": split,
        "layout": hashlib.sha256(json.dumps(layout, sort_keys=True).encode()).hexdigest()[:16],
        "templates": instructions.template_version(entry),
        "short_side": settings.short_side,
        "keep_original": settings.keep_original,
        "frames": settings.frames,
        "sources": {_inside(path, settings.raw): _source_hash(path) for path in sources},
        **({"evaluation": section} if section and not shipped else {}),
        **({"known_files": known} if known and not shipped else {}),
    }


def _inside(path: Path, raw: Path) -> str:
    return path.relative_to(raw).as_posix() if path.is_relative_to(raw) else path.name


def _source_hash(path: Path) -> str:
    """SHA-256 of a file; of a folder: of the names, sizes and texts in it."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file_path in sorted(file for file in path.rglob("*") if file.is_file()):
        text = file_path.suffix.lower() in _TEXTS
        content = _source_hash(file_path) if text else str(file_path.stat().st_size)
        digest.update(f"{file_path.relative_to(path).as_posix()}\0{content}\0".encode())
    return digest.hexdigest()


def _existing_report(out: Path, request: dict[str, Any]) -> PrepareReport:
    try:
        card = json.loads((out / CARD).read_text(encoding="utf-8"))
        written, report = card["request"], PrepareReport(**card["report"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{out} holds shards and no {CARD} of ours; name another directory or remove it"
        ) from error
    _refuse_other(out, written, request, "shards")
    check_index(out)
    return report


def _refuse_other(out: Path, before: dict[str, Any], request: dict[str, Any], what: str) -> None:
    differing = [key for key in request if before.get(key) != request[key]]
    if differing:
        raise ValueError(
            f"{out} holds {what} written from other {', '.join(differing)}; "
            "name another directory or remove it"
        )


def _refuse_foreign(out: Path) -> None:
    """Nothing but an unfinished conversion may lie in `out`."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is no directory; name another one")
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    foreign = sorted(names - {CHUNKS, CARD, QUARANTINE})
    if CHUNKS not in names and any(is_shard(name) for name in names):
        raise ValueError(f"{out} holds shards and no {INDEX}; {REBUILD.format(out)}")
    if foreign and (CHUNKS not in names or any(not is_shard(name) for name in foreign)):
        raise ValueError(
            f"{out} is not empty and holds no shards that were written whole; "
            "name another directory or remove it"
        )


@contextmanager
def _sole_or_shared(chunks: Path, out: Path, portion: tuple[int, int] | None) -> Iterator[None]:
    """Keeps a second process from the same work; portions may run beside each other."""
    try:
        with ExitStack() as stack:
            if portion is not None:
                own = f"portion-{portion[0] % portion[1]}-of-{portion[1]}.lock"
                stack.enter_context(locked(chunks / own, wait_seconds=0))
            stack.enter_context(
                locked(
                    chunks / "run.lock",
                    shared=portion is not None,
                    wait_seconds=_SECONDS_TO_START,
                )
            )
            yield
    except BusyError as error:
        raise BusyError(
            f"another process is writing to {out}; wait until it has ended, then run this again"
        ) from error


def _survey(
    chunks: Path, out: Path, settings: Settings, split: str, request: dict[str, Any]
) -> Survey:
    """The survey of this request: that of an attempt before, or a new one."""
    survey = load_survey(chunks, settings.raw)
    kept = _chunk_directories(chunks)
    path = chunks / _REQUEST
    if path.is_file() and (survey is not None or kept):
        before = json.loads(path.read_text(encoding="utf-8"))
        # Without a survey what was read may have changed: every chunk is held against the new one.
        asked = request if survey is not None else request | {"sources": before["sources"]}
        _refuse_other(out, before, asked, "an unfinished conversion")
    if survey is not None:
        return survey
    write_beside(path, json.dumps(request), chunks)
    logger.info("reading the annotations of %s (%s)", settings.entry.name, split)
    survey = make_survey(chunks, settings.raw, readers.read(settings.raw, split, settings.entry))
    for chunk, directory in kept.items():
        made = finished(chunks, chunk)
        if chunk >= survey.chunks or made is None or made.digest != survey.digest(chunk):
            shutil.rmtree(directory)
    return survey


def _chunk_directories(chunks: Path) -> dict[int, Path]:
    found = {path.name.removeprefix("part-"): path for path in chunks.glob("part-*")}
    return {int(name): path for name, path in found.items() if name.isdigit() and path.is_dir()}


def _forget_faults(chunks: Path) -> None:
    """After a failure over bad annotations: they are to be read once more, they may be mended.

    Chunks without any are kept. While other portions are being converted nothing is done.
    """
    if not (chunks / FAILED).is_file():
        return
    with suppress(BusyError), locked(chunks / "run.lock", wait_seconds=0):
        shutil.rmtree(chunks / PLAN, ignore_errors=True)
        for chunk, directory in _chunk_directories(chunks).items():
            made = finished(chunks, chunk)
            if made is None or made.quarantined:
                shutil.rmtree(directory)
        (chunks / FAILED).unlink(missing_ok=True)


def _portion(chunks: int, portion: tuple[int, int] | None) -> range:
    if portion is None:
        return range(chunks)
    index, count = portion
    index %= count
    return range(index * chunks // count, (index + 1) * chunks // count)


def _convert(survey: Survey, arguments: "_Arguments", workers: int, progress: bool) -> None:
    """Converts the chunks `own`, here or in processes beside this one."""
    chunks, own, settings, *_ = arguments
    done = [report for report in (finished(chunks, chunk) for chunk in own) if report is not None]
    with tqdm(
        desc=settings.entry.name,
        total=survey.examples if len(own) == survey.chunks else None,
        initial=sum(report.written + report.quarantined for report in done),
        unit=" samples",
        disable=not progress,
    ) as bar:
        if workers == 1 or len(own) - len(done) <= 1:
            _convert_all(bar.update, *arguments)
        else:
            run_beside(min(workers, len(own) - len(done)), _convert_all, arguments, bar.update)


_Arguments = tuple[Path, range, Settings, float, dict[str, Any], Path]


def _convert_all(
    report: Report,
    chunks: Path,
    own: range,
    settings: Settings,
    budget: float,
    request: dict[str, Any],
    out: Path,
) -> None:
    """Converts every chunk of `own` that nobody has; then waits for those that others have."""
    survey = load_survey(chunks, settings.raw)
    assert survey is not None
    left = [chunk for chunk in own if finished(chunks, chunk) is None]
    for wait in (False, True):
        busy = []
        for chunk in left:
            steps = _Steps(report)
            try:
                made = convert_chunk(
                    chunks, survey, chunk, settings, wait=wait, progress=steps.step
                )
            except BusyError:
                busy.append(chunk)
                continue
            steps.flush()
            if made.quarantined:  # it may be that the budget cannot be met any more
                check_budget(Known.of(chunks, survey, range(survey.chunks)), budget, request, out)
        left = busy


class _Steps:
    """Counts, and reports now and then."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._count = 0

    def step(self) -> None:
        self._count += 1
        if self._count == 32:
            self.flush()

    def flush(self) -> None:
        self._report(self._count)
        self._count = 0
