"""TextVQA: questions about the text in images, with ten answers and the tokens Rosetta read."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.instructions import format_ocr_tokens
from ibtrain.data.readers.fields import FieldError, Rejected, Row, Unused, counted_answers, each
from ibtrain.data.readers.files import Images, annotation_files
from ibtrain.data.readers.lookup import ocr_tokens
from ibtrain.data.readers.streams import entries_under
from ibtrain.data.records import Answer, Example


def read(raw: Path, split: str, entry: DatasetEntry) -> Iterator[Example | Rejected]:
    """One example per question, its answers weighted by annotators.

    Where nothing was read in the image, the question is asked without tokens.
    """
    questions_path, tokens_path = annotation_files(raw, split, entry)
    images = Images(raw, entry)
    labelled = entry.splits[split].labelled
    read_tokens = ocr_tokens(tokens_path)

    def make(row: Row) -> Iterable[Example]:
        image_id = row.identity("image_id")
        tokens = read_tokens.get(image_id)
        if tokens is None:
            raise FieldError(f"{row.origin}: image {image_id} has no entry in {tokens_path.name}")
        slots = {"question": row.text("question").strip()}
        form = "visual_question_answering"
        if tokens:
            slots = {"ocr_tokens": format_ocr_tokens(tokens), **slots}
            form = "question_answering_with_reading"
        yield Example(
            entry.name,
            entry.task,
            row.identity("question_id"),
            images.named(f"{image_id}.jpg"),
            _answers(row, labelled),
            form=form,
            slots=slots,
            details={"image_id": image_id, "ocr_tokens": tokens},
        )

    yield from each(entries_under(questions_path, "data"), make)


def _answers(row: Row, labelled: bool) -> tuple[Answer, ...]:
    if row.has("answers"):
        return counted_answers(row.texts("answers"))
    if labelled:
        raise Unused("no answer")
    return ()
