"""A list of images with captions, of any length: Web CapFilt, or your own.

The file is JSON, JSON Lines or CSV. Each entry has "image" (a path) and "caption", a string or a
list of them. The dataset's `reader_options` rename what is read: {image: file, caption: text,
id: key}. Where the split's name is train, each caption is an example; in any other, each image is
one with all its captions as references. The id is "id", else the entry's position in the file.

BLIP's own lists name "url" instead of "image". There the images are those that img2dataset wrote
from the list as it stands (files, 10,000 a folder): 00001/000010002.jpg is of entry 10002. Links
die, so an image that was not fetched is left out, not bad.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.readers.fields import FieldError, Rejected, Row, Unused, each
from ibtrain.data.readers.files import Images, annotation_files
from ibtrain.data.readers.lists import entries
from ibtrain.data.records import Answer, Example

OPTIONS = ("image", "caption", "id")
_IMAGES_A_FOLDER = 10_000


def read(raw: Path, split: str, entry: DatasetEntry) -> Iterator[Example | Rejected]:
    """Examples in the order of the file; several captions of an entry are numbered `ID-N`."""
    (path,) = annotation_files(raw, split, entry)
    images = Images(raw, entry)
    options = entry.reader_options
    labelled = entry.splits[split].labelled

    image_key, caption = options.get("image", "image"), options.get("caption", "caption")
    identities = (options.get("id", "id"),)

    def make(row: Row, number: int) -> Iterable[Example]:
        if not ((row.has(image_key) or row.has("url")) and (row.has(caption) or not labelled)):
            row = row.spelled((image_key, caption, *identities))
        identity = str(number)
        if "id" in options or row.has("id"):
            identity = row.identity(options.get("id", "id"))
        image = _image(row, image_key, number, images)
        answers = _captions(row, caption, labelled)
        example = partial(Example, entry.name, entry.task, image=image, form="captioning")
        if split != "train" or len(answers) < 2:
            yield example(id=identity, answers=answers)
            return
        for index, answer in enumerate(answers):
            yield example(id=f"{identity}-{index}", answers=(answer,))

    for number, pair in enumerate(entries(path)):
        yield from each([pair], partial(make, number=number))


def _captions(row: Row, key: str, labelled: bool) -> tuple[Answer, ...]:
    if not labelled and not row.has(key):
        return ()
    texts = [text.strip() for text in row.words(key)]
    if not any(texts):
        raise Unused("no caption")
    return tuple(Answer(text) for text in texts if text)


def _image(row: Row, key: str, number: int, images: Images) -> Path:
    if row.has(key) or not row.has("url"):
        return images.named(row.text(key))
    folder = f"{number // _IMAGES_A_FOLDER:05d}"
    try:
        return images.first((f"{folder}/{number:09d}.jpg", f"{number:09d}.jpg"))
    except FieldError as error:
        raise Unused("its image was not fetched") from error
