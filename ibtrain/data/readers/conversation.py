"""Conversations about an image: LLaVA-Instruct, or your own in the same form.

Every answer of the assistant is an example, the turns before it its history. The text is left as
it is (case, length, punctuation); only the mark `<image>` is taken out, with the line break that
sets it apart. The file is JSON or JSON Lines of entries with "id", "image" and "conversations"
({"from": "human" | "gpt", "value"} in turn); without "image", it is a conversation in text alone.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.readers.fields import MAXIMUM_TEXT, FieldError, Rejected, Row, Unused, each
from ibtrain.data.readers.files import Images, annotation_files
from ibtrain.data.readers.streams import entries
from ibtrain.data.records import Answer, Example

MAXIMUM_TURNS = 200
_IMAGE_MARK = re.compile(r"<image>\n|\n<image>|<image>")


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

    yield from each(entries(path), make)


def _turns(row: Row) -> list[tuple[str, str]]:
    """(history and question, answer) of every turn.

    Raises:
        FieldError: the speakers do not alternate, or one says nothing.
    """
    said = row.rows("conversations")
    if not said:
        raise Unused("no turns")
    if len(said) > 2 * MAXIMUM_TURNS:
        raise FieldError(
            f"{row.place}: {len(said)} turns; at most {2 * MAXIMUM_TURNS} are read of one entry"
        )
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
        question = _IMAGE_MARK.sub("", human.text("value"))
        if not question.strip():
            raise FieldError(f"{human.place}: 'value' holds no question")
        history.append(question)
        answer = assistant.text("value")
        instruction = "\n".join(history)
        if len(instruction) > MAXIMUM_TEXT:
            raise FieldError(f"{human.place}: with its history, longer than {MAXIMUM_TEXT}")
        turns.append((instruction, answer))
        history.append(answer)
    return turns
