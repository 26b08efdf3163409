"""Converting one chunk: examples to records to shards, in a directory that appears atomically.

A chunk is converted by whoever holds its lock. Its directory is written under another name and
renamed at the end, so a finished chunk is never touched again and a killed one leaves nothing that
counts.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from ibtrain.data import instructions
from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.images import DAMAGE, encode_jpeg, image_size, reencode
from ibtrain.data.preparation.survey import Survey, private
from ibtrain.data.records import Example, Record
from ibtrain.data.shards.format import decode_sample
from ibtrain.data.shards.records import columns_to_record, record_to_columns
from ibtrain.data.shards.writer import ShardWriter, encode_sample
from ibtrain.data.video import frame_files, frames
from ibtrain.files import locked, sync_tree

MAXIMUM_RECORD_BYTES = 1 << 25
QUARANTINE = "quarantine.jsonl"
# The names on disk are those of earlier releases, whose unfinished conversions go on.
_REPORT = "part.json"
_MEASURES = ("instruction_characters", "answer_characters", "width", "height", "image_bytes")


@dataclass(frozen=True)
class Settings:
    """What is converted, from where, and how images are stored."""

    entry: DatasetEntry
    raw: Path
    short_side: int
    keep_original: bool
    frames: int


@dataclass(frozen=True)
class Spread:
    """How many values there were, their sum, the lowest and the highest."""

    count: int = 0
    total: int = 0
    low: int = 0
    high: int = 0

    def __add__(self, other: "Spread") -> "Spread":
        if not self.count or not other.count:
            return other if not self.count else self
        return Spread(
            self.count + other.count,
            self.total + other.total,
            min(self.low, other.low),
            max(self.high, other.high),
        )

    def summary(self) -> dict[str, Any]:
        """{"count", "min", "mean", "max"}, null where there was nothing."""
        if not self.count:
            return {"count": 0, "min": None, "mean": None, "max": None}
        mean = round(self.total / self.count, 3)
        return {"count": self.count, "min": self.low, "mean": mean, "max": self.high}


@dataclass(frozen=True)
class ChunkReport:
    """A finished chunk: its records, bad examples, entries of the index, and what it measures.

    `digest` is that of the examples that it was made from.
    """

    digest: str
    written: int
    quarantined: int
    shards: tuple[dict[str, Any], ...]
    spreads: dict[str, Spread]


def chunk_directory(chunks: Path, chunk: int) -> Path:
    """Where a finished chunk lies."""
    return chunks / f"part-{chunk:05}"


def finished(chunks: Path, chunk: int) -> ChunkReport | None:
    """The report of a chunk, if it is finished."""
    try:
        text = (chunk_directory(chunks, chunk) / _REPORT).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    fields = json.loads(text)
    fields["shards"] = tuple(fields["shards"])
    fields["spreads"] = {name: Spread(*values) for name, values in fields["spreads"].items()}
    return ChunkReport(**fields)


def quarantine_of(chunks: Path, chunk: int) -> list[dict[str, Any]]:
    """{"number", "id", "reason"} of each bad example of a finished chunk."""
    with (chunk_directory(chunks, chunk) / QUARANTINE).open(encoding="ascii") as lines:
        return [json.loads(line) for line in lines]


def convert_chunk(
    chunks: Path,
    survey: Survey,
    chunk: int,
    settings: Settings,
    *,
    wait: bool,
    progress: Callable[[], object] = lambda: None,
) -> ChunkReport:
    """Converts a chunk, unless that is done already.

    Args:
        chunks: the directory of all chunks.
        survey: what is to be converted.
        chunk: its number.
        settings: how.
        wait: wait for another process that converts it now.
        progress: called after every example.

    Raises:
        BusyError: another process converts it now, and `wait` is false.
        OSError: the disk is full, or something like it.
    """
    with locked(chunks / f"part-{chunk:05}.lock", wait_seconds=None if wait else 0):
        lines = survey.lines_of(chunk)
        digest = xxhash.xxh3_128_hexdigest("".join(lines).encode("ascii"))
        done = finished(chunks, chunk)
        if done is not None and done.digest == digest:
            return done
        target = chunk_directory(chunks, chunk)
        for leftover in (target, *chunks.glob(f".part-{chunk:05}.*")):
            if leftover.is_dir():
                shutil.rmtree(leftover)
        temporary = Path(tempfile.mkdtemp(prefix=f".part-{chunk:05}.", dir=chunks))
        try:
            report = _write(temporary, map(survey.example, lines), digest, settings, progress)
            content = asdict(report)
            content["spreads"] = {
                name: list(asdict(spread).values()) for name, spread in report.spreads.items()
            }
            (temporary / _REPORT).write_text(json.dumps(content), encoding="utf-8")
            temporary.chmod(0o755)
            sync_tree(temporary)
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return report


def _write(
    directory: Path,
    examples: Iterator[tuple[int, Example]],
    digest: str,
    settings: Settings,
    progress: Callable[[], object],
) -> ChunkReport:
    writer = ShardWriter(directory)
    pictures = _Pictures(settings)
    written = quarantined = 0
    spreads = dict.fromkeys(_MEASURES, Spread())
    with (directory / QUARANTINE).open("w", encoding="ascii") as quarantine:
        for number, example in examples:
            try:
                record, sizes = _record(example, settings.entry, pictures)
                sample = encode_sample(record_to_columns(record))
                _check_readable(sample)
            except ValueError as error:
                reason = private(str(error), settings.raw)
                row = {"number": number, "id": example.id, "reason": reason}
                quarantine.write(json.dumps(row) + "\n")
                quarantined += 1
            else:
                writer.write(sample)
                written += 1
                _measure(record, sizes, spreads)
            progress()
    writer.finish()
    return ChunkReport(digest, written, quarantined, tuple(writer.entries), spreads)


def _record(
    example: Example, entry: DatasetEntry, pictures: "_Pictures"
) -> tuple[Record, tuple[tuple[int, int], ...]]:
    """The record of an example and (width, height) of each image; ValueError why there is none."""
    images, sizes = pictures.of(example)
    record = Record(
        dataset=example.dataset,
        task=example.task,
        id=example.id,
        images=images,
        instructions=instructions.render(example, entry),
        answers=example.answers,
        form=example.form,
        plain=instructions.plain_input(example, entry),
        details=example.details,
    )
    return record, sizes


def _check_readable(sample: bytes) -> None:
    """What is written must come back: readers have limits of their own."""
    if len(sample) > MAXIMUM_RECORD_BYTES:
        raise ValueError(f"{len(sample)} bytes, more than the {MAXIMUM_RECORD_BYTES} of a record")
    columns_to_record(decode_sample(sample))


def _measure(
    record: Record, sizes: tuple[tuple[int, int], ...], spreads: dict[str, Spread]
) -> None:
    found = {
        "instruction_characters": [len(text) for text in record.instructions],
        "answer_characters": [len(answer.text) for answer in record.answers],
        "width": [width for width, _ in sizes],
        "height": [height for _, height in sizes],
        "image_bytes": [len(image) for image in record.images],
    }
    for name, values in found.items():
        if values:
            spreads[name] += Spread(len(values), sum(values), min(values), max(values))


class _Pictures:
    """The encoded images of examples. The last one is kept: examples of an image come together."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._paths: tuple[Path, ...] = ()
        self._images: tuple[bytes, ...] = ()
        self._sizes: tuple[tuple[int, int], ...] = ()
        self._fault: ValueError | None = None

    def of(self, example: Example) -> tuple[tuple[bytes, ...], tuple[tuple[int, int], ...]]:
        """The images of an example (one, several, the frames of a video, or none), their sizes."""
        paths = (example.image,) if example.image else example.images
        if example.video:
            paths = (example.video,)
        if paths != self._paths:
            self._paths, self._fault = paths, None
            self._images, self._sizes = (), ()
            try:
                if example.video:
                    self._images = self._frames(example.video)
                else:
                    self._images = tuple(self._reencoded(path) for path in paths)
                self._sizes = tuple(image_size(image) for image in self._images)
            except DAMAGE as error:
                self._fault = ValueError(str(error))
        if self._fault is not None:
            raise self._fault
        return self._images, self._sizes

    def _frames(self, path: Path) -> tuple[bytes, ...]:
        count = self._settings.frames
        if path.is_dir():
            files = frame_files(path, count)
            encoded = {file: self._reencoded(file) for file in dict.fromkeys(files)}
            return tuple(encoded[file] for file in files)
        limit = None if self._settings.keep_original else self._settings.short_side
        return tuple(encode_jpeg(frame, limit) for frame in frames(path, count))

    def _reencoded(self, path: Path) -> bytes:
        settings = self._settings
        return reencode(path, short_side=settings.short_side, keep_original=settings.keep_original)
