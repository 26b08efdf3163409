"""Raw files to shards: readers, instructions, re-encoded images, written whole or not at all."""

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ibtrain.data import catalog, instructions, readers
from ibtrain.data.images import reencode
from ibtrain.data.records import Example, Record
from ibtrain.data.shards import (
    COLUMNS,
    COMPRESSION,
    HASHES,
    check_index,
    fingerprint,
    record_to_columns,
)

SHARD_BYTES = 1 << 26  # uncompressed
CARD = "card.json"
QUARANTINE = "quarantine.jsonl"
_FORMAT = 1  # raise it when records are written otherwise
_IMAGES_KEPT = 128  # encoded images that wait for another example of the same image


@dataclass(frozen=True)
class PrepareReport:
    """What became of a split: records written, dropped by reason, and bad ones set aside."""

    dataset: str
    split: str
    written: int
    dropped: dict[str, int]
    quarantined: int
    shards: int


def prepare(
    dataset: str,
    raw: Path,
    out: Path,
    *,
    split: str | None = None,
    workers: int = 1,
    progress: bool = True,
    budget: float = 0.01,
    short_side: int = 288,
    keep_original: bool = False,
) -> PrepareReport:
    """Writes the shards of a split to `out`, whole or not at all.

    Beside the shards lie card.json (counts, sizes, hashes of the source files, version of the
    templates) and quarantine.jsonl (id and reason of each bad annotation). Where `out` holds the
    result of the same request already, its report is returned and nothing is done.

    Args:
        dataset: a name in the catalog.
        raw: its raw directory; see catalog.py for what lies where.
        out: the directory to make.
        split: the dataset's first by default.
        workers: processes that re-encode images.
        progress: show a bar on stderr.
        budget: the share of bad annotations above which the whole fails.
        short_side: pixels to which larger images are reduced.
        keep_original: never reduce images.

    Raises:
        ValueError: something is missing, `out` holds something else, the budget is exceeded (the
            reasons then lie beside `out`), or not one record is left.
    """
    entry = catalog.get(dataset)
    split = split or entry.default_split
    sources = readers.annotation_files(raw, split, entry)
    request = {
        "format": _FORMAT,
        "dataset": dataset,
        "split": split,
        "templates": instructions.template_version(entry),
        "short_side": short_side,
        "keep_original": keep_original,
        "sources": {path.name: _file_hash(path) for path in sources},
    }
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        return _existing_report(out, request)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.writing-", dir=out.parent))
    try:
        encode = partial(reencode, short_side=short_side, keep_original=keep_original)
        context = get_context("spawn")
        pool = ProcessPoolExecutor(workers, mp_context=context) if workers > 1 else None
        with pool or nullcontext():
            found = _encoded(
                _without_repeats(readers.read(raw, split, entry)),
                _Encoder(encode, pool),
                window=1 if pool is None else 8 * workers,
            )
            shown = tqdm(found, desc=f"{dataset} {split}", unit=" samples", disable=not progress)
            report = _write(temporary, shown, dataset, split)
        _check_budget(report, budget, temporary / QUARANTINE, out)
        _write_card(temporary, request, report)
        temporary.chmod(0o755)
        if out.is_dir():
            out.rmdir()  # it is empty
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return report


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _existing_report(out: Path, request: dict[str, Any]) -> PrepareReport:
    path = out / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        written, report = card["request"], PrepareReport(**card["report"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{out} is not empty and holds no shards that were written whole; "
            "name another directory or remove it"
        ) from error
    differing = [key for key in request if written.get(key) != request[key]]
    if differing:
        raise ValueError(
            f"{out} holds shards written from other {', '.join(differing)}; "
            "name another directory or remove it"
        )
    check_index(out)
    return report


class _Encoder:
    """Encodes images, here or in a pool; an image that several examples share, once."""

    def __init__(self, encode: Callable[[Path], bytes], pool: Executor | None) -> None:
        self._encode = encode
        self._pool = pool
        self._recent: OrderedDict[Path, Future[bytes]] = OrderedDict()

    def submit(self, path: Path) -> Future[bytes]:
        """The bytes to come, or the ValueError."""
        future = self._recent.pop(path, None)
        if future is None:
            future = (
                self._run(path) if self._pool is None else self._pool.submit(self._encode, path)
            )
        self._recent[path] = future
        if len(self._recent) > _IMAGES_KEPT:
            self._recent.popitem(last=False)
        return future

    def _run(self, path: Path) -> Future[bytes]:
        future: Future[bytes] = Future()
        try:
            future.set_result(self._encode(path))
        except ValueError as error:
            future.set_exception(error)
        return future


def _without_repeats(
    found: Iterable[Example | readers.Rejected],
) -> Iterator[Example | readers.Rejected]:
    seen: set[str] = set()
    for item in found:
        if isinstance(item, Example) and item.id in seen:
            yield readers.Rejected(item.id, "repeated id", bad=False)
            continue
        if isinstance(item, Example):
            seen.add(item.id)
        yield item


def _encoded(
    found: Iterable[Example | readers.Rejected], encoder: _Encoder, window: int
) -> Iterator[Record | readers.Rejected]:
    """Records in the order of their examples, of which `window` are under way at a time."""
    waiting: deque[tuple[Example | readers.Rejected, Future[bytes] | None]] = deque()
    for item in found:
        image = item.image if isinstance(item, Example) else None
        waiting.append((item, encoder.submit(image) if image is not None else None))
        if len(waiting) >= window:
            yield _finished(*waiting.popleft())
    while waiting:
        yield _finished(*waiting.popleft())


def _finished(
    item: Example | readers.Rejected, image: Future[bytes] | None
) -> Record | readers.Rejected:
    if isinstance(item, readers.Rejected):
        return item
    try:
        data = image.result() if image is not None else b""
    except ValueError as error:
        return readers.Rejected(item.id, str(error))
    return Record(
        dataset=item.dataset,
        task=item.task,
        id=item.id,
        images=(data,) if data else (),
        instructions=instructions.render(item, catalog.get(item.dataset)),
        answers=item.answers,
        form=item.form,
        plain=instructions.plain_input(item, catalog.get(item.dataset)),
        details=item.details,
    )


def _write(
    directory: Path, found: Iterable[Record | readers.Rejected], dataset: str, split: str
) -> PrepareReport:
    from streaming import MDSWriter  # takes seconds to import, which only writing needs

    dropped: Counter[str] = Counter()
    written = quarantined = 0
    with (
        MDSWriter(
            out=str(directory),
            columns=COLUMNS,
            compression=COMPRESSION,
            hashes=list(HASHES),
            size_limit=SHARD_BYTES,
        ) as writer,
        (directory / QUARANTINE).open("w", encoding="utf-8") as quarantine,
    ):
        for item in found:
            if isinstance(item, Record):
                writer.write(record_to_columns(item))
                written += 1
            elif item.bad:
                quarantine.write(json.dumps({"id": item.id, "reason": item.reason}) + "\n")
                quarantined += 1
            else:
                dropped[item.reason] += 1
    shards = len(list(directory.glob("shard.*")))
    return PrepareReport(dataset, split, written, dict(dropped), quarantined, shards)


def _check_budget(report: PrepareReport, budget: float, quarantine: Path, out: Path) -> None:
    total = report.written + report.quarantined + sum(report.dropped.values())
    name = f"{report.dataset} ({report.split})"
    kept = out.parent / f"{out.name}.{QUARANTINE}"
    if report.quarantined > budget * total:
        shutil.copyfile(quarantine, kept)
        with kept.open(encoding="utf-8") as lines:
            first = json.loads(next(lines))
        raise ValueError(
            f"{name}: {report.quarantined} of {total} annotations are bad, more than the budget of "
            f"{budget:.1%}; the first is {first['id']}: {first['reason']}. All reasons: {kept}"
        )
    if not report.written:
        raise ValueError(f"{name}: not one record is left of {total}; dropped: {report.dropped}")


def _write_card(directory: Path, request: dict[str, Any], report: PrepareReport) -> None:
    index = check_index(directory)
    card = {
        "request": request,
        "report": asdict(report),
        "bytes": {
            "stored": sum(shard.bytes for shard in index.shards),
            "raw": sum(shard.raw_bytes for shard in index.shards),
        },
        "fingerprint": fingerprint(index),
    }
    with (directory / CARD).open("w", encoding="utf-8") as file:
        json.dump(card, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
