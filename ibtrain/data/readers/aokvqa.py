"""A-OKVQA: each question gives a direct and a multiple-choice example, and with {generate:
question} one that asks for the question. LAVIS's files add the image's path.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.readers.choices import multiple_choice
from ibtrain.data.readers.fields import Rejected, Row, Unused, counted_answers, each
from ibtrain.data.readers.files import Images, annotation_files
from ibtrain.data.readers.question_answer import asked
from ibtrain.data.readers.streams import list_entries
from ibtrain.data.records import Answer, Example

OPTIONS = ("generate",)


def read(raw: Path, split: str, entry: DatasetEntry) -> Iterator[Example | Rejected]:
    """Examples `ID-direct` (answers weighted by annotators) and `ID-choice` (the right choice), or
    `ID` where questions are generated.
    """
    (path,) = annotation_files(raw, split, entry)
    images = Images(raw, entry)
    labelled = entry.splits[split].labelled
    generates = "generate" in entry.reader_options

    def direct(row: Row) -> Iterable[Example]:
        question_id = row.identity("question_id")
        yield asked(
            entry,
            question_id if generates else f"{question_id}-direct",
            _image(row, images),
            row.text("question").strip(),
            _direct_answers(row, labelled),
            {
                key: row.truth(key)  # such questions are left out when direct answers are scored
                for key in ("difficult_direct_answer",)
                if row.has(key)
            },
        )

    def choice(row: Row) -> Iterable[Example]:
        slots, answers, details = multiple_choice(row, "correct_choice_idx", labelled=labelled)
        yield Example(
            entry.name,
            entry.task,
            f"{row.identity('question_id')}-choice",
            _image(row, images),
            answers,
            form="multiple_choice",
            slots=slots,
            details=details,
        )

    for pair in list_entries(path):  # both of a question together: one image
        yield from each([pair], direct)
        if not generates:
            yield from each([pair], choice)


def _direct_answers(row: Row, labelled: bool) -> tuple[Answer, ...]:
    if row.has("direct_answers"):
        return counted_answers(row.texts("direct_answers"))
    if labelled:
        raise Unused("no answer")
    return ()


def _image(row: Row, images: Images) -> Path:
    """By COCO's number (official), else by the path that LAVIS's files add."""
    if row.has("image"):
        return images.named_or_coco(row.text("image"))
    return images.coco(row.identity("image_id"))
