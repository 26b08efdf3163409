"""MSVD-QA and MSRVTT-QA: short questions about videos, each with one answer.

Official: {split}_qa.json, which numbers the videos; the option `video` of the dataset's YAML makes
a name of the number, and MSVD's youtube_mapping.txt gives the names of the files for such names.
LAVIS: qa_{split}.json, which names the files.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.readers.fields import FieldError, Rejected, Row, Unused, each
from ibtrain.data.readers.files import Images, annotation_files
from ibtrain.data.readers.streams import list_entries
from ibtrain.data.records import Answer, Example

OPTIONS = ("video",)
QUESTION_TYPES = ("what", "who", "how", "when", "where")
MAXIMUM_MAPPING_BYTES = 1 << 24


def read(raw: Path, split: str, entry: DatasetEntry) -> Iterator[Example | Rejected]:
    """One example per question; its type is its first word, by which the owners report scores."""
    path, *rest = annotation_files(raw, split, entry)
    images = Images(raw, entry)
    names = _mapping(rest[0]) if rest else {}
    pattern = entry.reader_options.get("video", "{}")
    find = lru_cache(maxsize=1024)(images.video)  # many questions are about one video
    labelled = entry.splits[split].labelled

    def make(row: Row) -> Iterable[Example]:
        question = row.text("question").strip()
        answers: tuple[Answer, ...] = ()
        if row.has("answer") and not row.blank("answer"):
            answers = (Answer(row.text("answer").strip()),)
        elif labelled:
            raise Unused("no answer")
        name, video = _video(row, pattern, names, find)
        first = question.split()[0].lower()
        yield Example(
            entry.name,
            entry.task,
            row.identity("id" if row.has("id") else "question_id"),
            None,
            answers,
            form="visual_question_answering",
            slots={"question": question},
            details={
                "video_id": name,
                "question_type": first if first in QUESTION_TYPES else "other",
            },
            video=video,
        )

    yield from each(list_entries(path), make)


def _video(
    row: Row, pattern: str, names: dict[str, str], find: Callable[[str], Path]
) -> tuple[str, Path]:
    """(name without a suffix, file or folder) of the video that a question is about."""
    if row.has("video"):
        name = row.text("video")
        return name.removesuffix(Path(name).suffix), find(name)
    numbered = pattern.replace("{}", row.identity("video_id"))
    name = names.get(numbered, numbered)
    try:
        return name, find(name)
    except FieldError:
        if name == numbered:
            raise
        return name, find(numbered)


def _mapping(path: Path) -> dict[str, str]:
    """Names of files by the names that annotations give, from lines "FILE NAME".

    Raises:
        ValueError: naming the file and the line, where it is something else.
    """
    if path.stat().st_size > MAXIMUM_MAPPING_BYTES:
        raise ValueError(f"{path}: larger than {MAXIMUM_MAPPING_BYTES} bytes")
    found: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
    for number, line in enumerate(lines, start=1):
        parts = line.split()
        if not parts:
            continue
        if len(parts) != 2:
            raise ValueError(f"{path}:{number}: expected a file and its name, found {line[:60]!r}")
        found[parts[1]] = parts[0]
    return found
