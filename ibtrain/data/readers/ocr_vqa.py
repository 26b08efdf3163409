"""OCR-VQA: questions on book covers, one object with all books, each of which tells its split.

LAVIS's `ocrvqa.json` is the same object. Tokens read off the covers are no part of the release;
where `ocr_tokens.json` (in the form of TextVQA's Rosetta files) lies beside it, they are shown.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.instructions import format_ocr_tokens
from ibtrain.data.readers.fields import FieldError, Rejected, Row, Unused, each
from ibtrain.data.readers.files import Images, annotation_files
from ibtrain.data.readers.lookup import ocr_tokens
from ibtrain.data.readers.streams import object_entries
from ibtrain.data.records import Answer, Example

_SPLITS = {"1": "train", "2": "val", "3": "test"}


def read(raw: Path, split: str, entry: DatasetEntry) -> Iterator[Example | Rejected]:
    """Examples `BOOK-N`, N being the question's position among the book's own."""
    path, *rest = annotation_files(raw, split, entry)
    images = Images(raw, entry)
    tokens_of = ocr_tokens(rest[0]) if rest else None

    def make(row: Row) -> Iterable[Example]:
        book_id = row.identity("book")
        if row.blank("answer"):
            raise Unused("no answer")
        tokens = (tokens_of.get(book_id) if tokens_of is not None else None) or []
        slots = {"question": row.text("question").strip()}
        form = "visual_question_answering"
        if tokens:
            slots = {"ocr_tokens": format_ocr_tokens(tokens), **slots}
            form = "question_answering_with_reading"
        yield Example(
            entry.name,
            entry.task,
            row.identity("id"),
            _cover(row, book_id, images),
            (Answer(row.text("answer").strip()),),
            form=form,
            slots=slots,
            details={"image_id": book_id, "ocr_tokens": tokens},
        )

    yield from each(_questions(path, split), make)


def _questions(path: Path, split: str) -> Iterator[tuple[str, object]]:
    """(origin, question) of the books of a split; a book that is damaged is rejected as a whole."""
    for origin, book_id, value in object_entries(path):
        try:
            book = Row(value, origin)
            if _split(book) != split:
                continue
            asked, answers = book.entries("questions"), book.entries("answers")
            if len(asked) != len(answers):
                raise FieldError(f"{origin}: {len(asked)} questions and {len(answers)} answers")
            blank = not book.has("imageURL") or book.blank("imageURL")
            url = "" if blank else book.text("imageURL")
        except FieldError as error:
            yield origin, Rejected(book_id, str(error))
            continue
        for index, (question, answer) in enumerate(zip(asked, answers, strict=True)):
            identity = f"{book_id}-{index}"
            row = {"id": identity, "book": book_id, "question": question, "answer": answer}
            yield f"{origin}: question {index}", row | {"url": url}


def _split(book: Row) -> str:
    number = book.identity("split")
    if number not in _SPLITS:
        raise FieldError(f"{book.origin}: 'split' must be 1, 2 or 3, found {number[:60]!r}")
    return _SPLITS[number]


def _cover(row: Row, book_id: str, images: Images) -> Path:
    """The owners' script names a cover by the book, with the suffix of the URL it came from."""
    if "/" in book_id:
        raise FieldError(f"{row.origin}: {book_id!r} is no name of an image")
    suffix = PurePosixPath(row.text("url")).suffix if not row.blank("url") else ".jpg"
    return images.first(tuple(dict.fromkeys((f"{book_id}{suffix}", f"{book_id}.jpg"))))
