"""LLaVA-Instruct: every answer of the assistant is an example, the turns before it its history.

The text is left as it is (case, length, punctuation); only the mark `<image>` is taken out.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.readers.fields import FieldError, Rejected, Row, Unused, each, list_entries
from ibtrain.data.readers.files import Images, annotation_files
from ibtrain.data.records import Answer, Example

_IMAGE_MARK = "<image>"


def read(raw: Path, split: str, entry: DatasetEntry) -> Iterator[Example | Rejected]:
    """Examples `ID-TURN`, turns counted from 0; turns are joined by line breaks."""
    (path,) = annotation_files(raw, split, entry)
    images = Images(raw, entry)

    def make(row: Row) -> Iterable[Example]:
        identity = row.identity("id")
        # Text alone has no "image", as in the mixtures of later LLaVA releases.
        image = images.named_or_coco(row.text("image")) if row.has("image") else None
        for index, (instruction, answer) in enumerate(_turns(row)):
            yield Example(
                entry.name,
                entry.task,
                f"{identity}-{index}",
                image,
                (Answer(answer),),
                instructions=(instruction,),
                details={"turn": index},
            )

    yield from each(list_entries(path), make)


def _turns(row: Row) -> list[tuple[str, str]]:
    """(history and question, answer) of every turn.

    Raises:
        FieldError: the speakers do not alternate, or one says nothing.
    """
    said = row.rows("conversations")
    if not said:
        raise Unused("no turns")
    if len(said) % 2:
        raise FieldError(f"{row.place}: the last of {len(said)} turns has no answer")
    history: list[str] = []
    turns = []
    for human, assistant in zip(said[::2], said[1::2], strict=True):
        for turn, speaker in ((human, "human"), (assistant, "gpt")):
            if turn.text("from") != speaker:
                raise FieldError(
                    f"{turn.place}: expected a turn from {speaker!r}, found {turn.text('from')!r}"
                )
        question = human.text("value").replace(_IMAGE_MARK, "").strip()
        if not question:
            raise FieldError(f"{human.place}: 'value' holds no question")
        history.append(question)
        answer = assistant.text("value")
        turns.append(("\n".join(history), answer))
        history.append(answer)
    return turns
