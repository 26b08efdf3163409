"""NoCaps as its owners publish it (images and captions in one file), or LAVIS's list of images.

An image is an example, with its ten captions as references. `details` has the domain of the image
(in-domain, near-domain, out-domain), by which scores are reported. The test split and LAVIS's list
have no captions.
"""

from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.readers.fields import FieldError, Rejected, Row, Unused, each
from ibtrain.data.readers.files import Images, annotation_files
from ibtrain.data.readers.streams import entries_under, list_entries, top_level
from ibtrain.data.records import Answer, Example


def read(raw: Path, split: str, entry: DatasetEntry) -> Iterator[Example | Rejected]:
    """One example per image; its id is NoCaps's own number of the image."""
    (path,) = annotation_files(raw, split, entry)
    images = Images(raw, entry)
    if top_level(path) == "list":
        yield from each(list_entries(path), lambda row: [_without_captions(row, entry, images)])
        return
    captions: dict[str, list[str]] = {}
    if entry.splits[split].labelled:
        captions = yield from _captions(path)
    labelled = entry.splits[split].labelled

    def make(row: Row) -> Iterable[Example]:
        identity = row.identity("id")
        references = captions.get(identity, [])
        if labelled and not references:
            raise Unused("no caption")
        details = {"image_id": identity}
        for key in ("open_images_id", "domain"):
            note = row.note(key)
            if note is not None:
                details[key] = note
        image = images.named(row.text("file_name"))
        yield _example(entry, identity, image, references, details)

    yield from each(entries_under(path, "images"), make)


def _captions(path: Path) -> Generator[Rejected, None, dict[str, list[str]]]:
    """Yields the annotations that are damaged; returns the captions of each image, in order."""
    found: dict[str, list[str]] = {}
    for origin, value in entries_under(path, "annotations"):
        try:
            row = Row(value, origin)
            image_id = row.identity("image_id")
            if not row.blank("caption"):
                found.setdefault(image_id, []).append(row.text("caption").strip())
        except FieldError as error:
            yield Rejected(origin, str(error))
    return found


def _without_captions(row: Row, entry: DatasetEntry, images: Images) -> Example:
    """LAVIS's {"image": "val/NAME.jpg", "img_id": NUMBER}."""
    identity = row.identity("img_id")
    image = images.named(row.text("image"))
    return _example(entry, identity, image, [], {"image_id": identity})


def _example(
    entry: DatasetEntry, identity: str, image: Path, references: list[str], details: dict[str, str]
) -> Example:
    return Example(
        entry.name,
        entry.task,
        identity,
        image,
        tuple(Answer(reference) for reference in references),
        form="captioning",
        details=dict(details),
    )
