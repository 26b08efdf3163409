"""COCO Caption and Flickr30K in Karpathy's split (his own `dataset_NAME.json`, or LAVIS's list per
split, whose captions may stand in a file beside it), and COCO's own `captions_NAME.json`.

For training each caption is an example; otherwise each image is one, with all its captions as
references. The id is the number of the image and, for training, the caption's position among the
image's own.
"""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.readers.fields import FieldError, Rejected, Row, Unused, each
from ibtrain.data.readers.files import Images, annotation_files, coco_number
from ibtrain.data.readers.streams import entries_under, list_entries, top_level
from ibtrain.data.records import Answer, Example

_SPLITS = ("train", "restval", "val", "test")


def read(raw: Path, split: str, entry: DatasetEntry) -> Iterator[Example | Rejected]:
    """Examples of a split; `restval` counts as train, as in the split's usual use."""
    path, *rest = annotation_files(raw, split, entry)
    images = Images(raw, entry)
    if path.name.startswith("dataset_"):
        yield from _read_karpathy(path, split, entry, images)
    elif top_level(path) == "object":
        yield from _read_coco(path, split, entry, images)
    else:
        references = (yield from _captions_by_image(rest[0])) if rest else {}
        yield from _read_lavis(path, split, entry, images, references)


def _examples(
    entry: DatasetEntry, split: str, name: str, image: Path, texts: list[str], first: int
) -> Iterable[Example]:
    captions = [text.strip() for text in texts if text.strip()]
    if not captions:
        raise Unused("no caption")
    identity = coco_number(name) or name
    details = {"image_id": identity}
    answers = tuple(Answer(caption) for caption in captions)
    if split != "train":
        yield Example(
            entry.name, entry.task, identity, image, answers, form="captioning", details=details
        )
        return
    for index, answer in enumerate(answers, start=first):
        yield Example(
            entry.name,
            entry.task,
            f"{identity}-{index}",
            image,
            (answer,),
            form="captioning",
            details=details,
        )


def _read_karpathy(
    path: Path, split: str, entry: DatasetEntry, images: Images
) -> Iterator[Example | Rejected]:
    wanted = {"train", "restval"} if split == "train" else {split}

    def make(row: Row) -> Iterable[Example]:
        if row.text("split") not in wanted:
            if row.text("split") not in _SPLITS:
                raise FieldError(
                    f"{row.origin}: 'split' must be one of {', '.join(_SPLITS)}, found "
                    f"{row.text('split')[:60]!r}"
                )
            return ()
        name = row.text("filename")
        if row.has("filepath"):  # Flickr30K's images lie in one folder
            name = f"{row.text('filepath')}/{name}"
        sentences = row.rows("sentences")
        texts = [sentence.text("raw") for sentence in sentences if not sentence.blank("raw")]
        return _examples(entry, split, name, images.named(name), texts, 0)

    yield from each(entries_under(path, "images"), make)


def _read_coco(
    path: Path, split: str, entry: DatasetEntry, images: Images
) -> Iterator[Example | Rejected]:
    """COCO's own file: a list of captions, those of an image anywhere in it."""
    seen: Counter[str] = Counter()

    def make(row: Row) -> Iterable[Example]:
        number = row.identity("image_id")
        image = images.coco(number)
        if row.blank("caption"):
            raise Unused("no caption")
        seen[number] += 1
        texts = [row.text("caption")]
        return _examples(entry, split, f"{number}.jpg", image, texts, seen[number] - 1)

    def make_all(row: Row) -> Iterable[Example]:
        number = row.identity("id")
        texts = references.get(number, [])
        return _examples(entry, split, f"{number}.jpg", images.coco(number), texts, 0)

    if split == "train":
        yield from each(entries_under(path, "annotations"), make)
    else:
        references = yield from _captions_by_image(path)
        yield from each(entries_under(path, "images"), make_all)


def _captions_by_image(path: Path) -> Generator[Rejected, None, dict[str, list[str]]]:
    """Yields the annotations that are damaged; returns the captions of a file in COCO's form by the
    number of their image.
    """
    found: dict[str, list[str]] = {}
    for origin, value in entries_under(path, "annotations"):
        try:
            row = Row(value, origin)
            number = row.identity("image_id")
            if not row.blank("caption"):
                found.setdefault(number, []).append(row.text("caption"))
        except FieldError as error:
            yield Rejected(origin, str(error))
    return found


def _read_lavis(
    path: Path,
    split: str,
    entry: DatasetEntry,
    images: Images,
    references: dict[str, list[str]],
) -> Iterator[Example | Rejected]:
    """Train: {"image", "caption", "image_id"} per caption; else "caption" is the image's list, or
    `references` has it by the image's number.
    """
    seen: Counter[str] = Counter()

    def make(row: Row) -> Iterable[Example]:
        name = row.text("image")
        image = images.named(name)
        if row.has("caption"):
            texts = row.text_or_texts("caption") if split == "train" else row.texts("caption")
        else:
            texts = references.get(coco_number(name) or name, [])
        examples = list(_examples(entry, split, name, image, texts, seen[name]))
        seen[name] += len(examples)
        return examples

    yield from each(list_entries(path), make)
