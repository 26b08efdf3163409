"""TextCaps: captions that read the text in an image, with the tokens that Rosetta read.

For training each caption is an example; otherwise each image is one, with all its captions as
references. LAVIS reads the same files.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.instructions import format_ocr_tokens
from ibtrain.data.readers.fields import FieldError, Rejected, Row, Unused, each
from ibtrain.data.readers.files import Images, annotation_files
from ibtrain.data.readers.lookup import ocr_tokens
from ibtrain.data.readers.streams import entries_under
from ibtrain.data.records import Answer, Example


def read(raw: Path, split: str, entry: DatasetEntry) -> Iterator[Example | Rejected]:
    """Examples `IMAGE-N` for training, N being the caption's position among the image's own, else
    `IMAGE`. Where nothing was read in the image, a caption is asked for without tokens.
    """
    captions_path, tokens_path = annotation_files(raw, split, entry)
    images = Images(raw, entry)
    tokens_of = ocr_tokens(tokens_path)
    labelled = entry.splits[split].labelled
    seen: Counter[str] = Counter()

    def make(row: Row) -> Iterable[Example]:
        image_id = row.identity("image_id")
        if "/" in image_id:
            raise FieldError(f"{row.origin}: 'image_id' {image_id!r} is no name of an image")
        seen[image_id] += 1
        if split != "train" and seen[image_id] > 1:
            if row.has("reference_strs") or not row.has("caption_str"):
                return  # its first row has given the references of all
            raise FieldError(
                f"{row.origin}: image {image_id} came before, and without 'reference_strs' this "
                "caption of it would be lost"
            )
        tokens = tokens_of.get(image_id)
        if tokens is None:
            raise FieldError(f"{row.origin}: image {image_id} has no entry in {tokens_path.name}")
        answers = _captions(row, split, labelled)
        yield Example(
            entry.name,
            entry.task,
            f"{image_id}-{seen[image_id] - 1}" if split == "train" else image_id,
            images.named(f"{image_id}.jpg"),
            answers,
            form="captioning_with_reading" if tokens else "captioning",
            slots={"ocr_tokens": format_ocr_tokens(tokens)} if tokens else {},
            details={"image_id": image_id, "ocr_tokens": tokens},
        )

    yield from each(entries_under(captions_path, "data"), make)


def _captions(row: Row, split: str, labelled: bool) -> tuple[Answer, ...]:
    key = "caption_str"
    if split != "train" and row.has("reference_strs"):
        key = "reference_strs"
    if not labelled and not row.has(key):
        return ()
    texts = [text.strip() for text in row.text_or_texts(key)]
    if not any(texts):
        raise Unused("no caption")
    return tuple(Answer(text) for text in texts if text)
