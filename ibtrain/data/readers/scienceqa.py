"""ScienceQA, of whose problems those with an image are used.

Official: problems.json keyed by problem, pid_splits.json with the problems of each split, images in
{split}/PROBLEM/. LAVIS: problems_{split}.json, keyed likewise.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.readers.choices import multiple_choice
from ibtrain.data.readers.fields import MAXIMUM_IDENTITY, FieldError, Rejected, Row, Unused, each
from ibtrain.data.readers.files import Images, annotation_files
from ibtrain.data.readers.streams import entries_under, object_entries
from ibtrain.data.records import Example

_KEPT = {
    "subject": "question_type",
    "topic": "topic",
    "category": "category",
    "skill": "skill",
    "grade": "grade",
}


def read(raw: Path, split: str, entry: DatasetEntry) -> Iterator[Example | Rejected]:
    """One example per problem that has an image; the hint, if there is one, is its context."""
    path, *rest = annotation_files(raw, split, entry)
    images = Images(raw, entry)
    labelled = entry.splits[split].labelled
    left = _problems_of(rest[0], split) if rest else None

    def make(row: Row) -> Iterable[Example]:
        identity = row.identity("id")
        if not row.has("image") or row.blank("image"):
            raise Unused("no image")
        slots, answers, details = multiple_choice(row, "answer", labelled=labelled)
        form = "multiple_choice"
        if row.has("hint") and not row.blank("hint"):
            slots = {"context": row.text("hint").strip(), **slots}
            form = "multiple_choice_with_context"
        for key, name in _KEPT.items():
            note = row.note(key)
            if note is not None:
                details[name] = note
        image = _image(row, identity, split, images)
        yield Example(
            entry.name, entry.task, identity, image, answers, form, slots, details=details
        )

    yield from each(_wanted(path, left), make)
    for identity in sorted(left or ()):
        yield Rejected(identity, f"{path.name} has no problem {identity}, which the split names")


def _problems_of(path: Path, split: str) -> set[str]:
    """The problems of a split; what is no text is called by its origin, and will not be found."""
    found = set()
    for origin, value in entries_under(path, split):
        name = value[:MAXIMUM_IDENTITY] if isinstance(value, str) else origin
        found.add(name.encode("utf-8", "backslashreplace").decode())
    return found


def _wanted(path: Path, left: set[str] | None) -> Iterator[tuple[str, object]]:
    """The problems that are in `left`, which it takes them from, with their ids; None: all."""
    for origin, identity, value in object_entries(path):
        if left is not None:
            if identity not in left:
                continue
            left.remove(identity)
        yield origin, {**value, "id": identity} if isinstance(value, dict) else value


def _image(row: Row, identity: str, split: str, images: Images) -> Path:
    """The image named by the problem, in the folder of the problem or as a path of its own."""
    name = row.text("image")
    folder = row.text("split") if row.has("split") else split
    official = f"{folder}/{identity}/{name}"
    # A bare name would be that of every problem's image.
    paths = (official, f"{identity}/{name}", *([name] if "/" in name else []))
    for candidate in paths:
        with suppress(FieldError):
            return images.named(candidate)
    return images.named(official)  # which tells what is missing
