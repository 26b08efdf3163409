"""VQAv2 and OKVQA, to answer their questions or, with {generate: question}, to ask them.

Official (visualqa.org): a file of questions and a file of ten answers to each; of a split whose
answers are not public, the questions alone. LAVIS: one list with both.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.readers.fields import FieldError, Rejected, Row, counted_answers, each
from ibtrain.data.readers.files import Images, annotation_files
from ibtrain.data.readers.lookup import Lookup
from ibtrain.data.readers.question_answer import asked, read_list
from ibtrain.data.readers.streams import entries_under, top_level
from ibtrain.data.records import Example

OPTIONS = ("generate",)


def read(raw: Path, split: str, entry: DatasetEntry) -> Iterator[Example | Rejected]:
    """One example per question; an answer's weight is the number of annotators who gave it."""
    path, *rest = annotation_files(raw, split, entry)
    images = Images(raw, entry)
    if top_level(path) == "list":
        yield from read_list(path, split, entry, images)
    elif not rest and entry.splits[split].labelled:
        raise ValueError(
            f"{path}: a file of questions alone; name the file of their answers beside it in "
            f"{entry.name}'s splits, or say there that {split} is not labelled"
        )
    else:
        yield from _read_official(path, rest[0] if rest else None, entry, images)


def _read_official(
    questions_path: Path, answers_path: Path | None, entry: DatasetEntry, images: Images
) -> Iterator[Example | Rejected]:
    given = None
    if answers_path is not None:
        given = Lookup(entries_under(answers_path, "annotations"), "question_id", _annotation)

    def make(row: Row) -> Iterable[Example]:
        question_id = row.identity("question_id")
        found = given.get(question_id) if given is not None else {"answers": None, "types": {}}
        if found is None:
            assert answers_path is not None
            raise FieldError(
                f"{row.origin}: question {question_id} has no entry in {answers_path.name}"
            )
        yield asked(
            entry,
            question_id,
            images.coco(row.identity("image_id")),
            row.text("question").strip(),
            () if found["answers"] is None else counted_answers(found["answers"]),
            found["types"],
        )

    yield from each(entries_under(questions_path, "questions"), make)
    if given is not None:
        yield from given.left_out


def _annotation(row: Row) -> dict[str, Any]:
    types = ("question_type", "answer_type")
    given = row.rows("answers")
    return {
        "answers": [answer.text("answer") for answer in given if not answer.blank("answer")],
        "types": {key: note for key in types if (note := row.note(key)) is not None},
    }
