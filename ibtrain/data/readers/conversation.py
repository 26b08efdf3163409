"""Conversations about images: LLaVA-Instruct, its successors' mixes, or your own in the same form.

Every answer of the assistant is an example, the turns before it its history. The text is left as
it is (case, length, punctuation); only the marks `<image>` that stand for an image are taken out,
with the line break that sets them apart. The file is JSON or JSON Lines of entries with "id" (else
one is made from the file's name and the entry's position), "image" and "conversations" ({"from":
"human" | "gpt" | "system", "value"} in turn). "image" or "images" is a path or a list of several,
"video" a video or a folder of its frames; with none of them, it is a conversation in text alone.
"messages" (or "conversation") of {"role": "user" | "assistant" | "system", "content"} are read
alike. The dataset's
`reader_options` rename "id", "image", "video" and "conversations".

Turns before the first question that is answered, and questions after the last answer, give no
example and are counted. What a system turn says goes before the first instruction.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.readers.fields import MAXIMUM_TEXT, FieldError, Rejected, Row, Unused, each
from ibtrain.data.readers.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Images, annotation_files
from ibtrain.data.readers.lists import entries
from ibtrain.data.readers.marks import without_marks
from ibtrain.data.readers.question_answer import MAXIMUM_IMAGES, shown
from ibtrain.data.records import Answer, Example

OPTIONS = ("id", "image", "video", "conversations")
REVISION = 2  # what was written from the same files before differs
MAXIMUM_TURNS = 200
UNANSWERED = "unanswered turn"
_SPEAKERS = {
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
    "system": "system",
}


def read(raw: Path, split: str, entry: DatasetEntry) -> Iterator[Example | Rejected]:
    """Examples `ID-TURN`, turns counted from 0; turns are joined by line breaks."""
    (path,) = annotation_files(raw, split, entry)
    images = Images(raw, entry)
    options = entry.reader_options

    def make(row: Row, number: int) -> Iterable[Example | Rejected]:
        talk = _Talk.of(row, options)
        key = options.get("id", "id")
        is_named = row.has(key) or "id" in options
        identity = row.identity(key) if is_named else f"{path.stem}:{number}"
        media: dict[str, Any] = {}
        if talk.video is not None:
            media["video"] = images.video(talk.video)
        elif talk.images:
            media = shown(tuple(images.named_or_coco(name) for name in talk.images))
        image = media.pop("image", None)
        for index, (instruction, answer) in enumerate(talk.turns):
            yield Example(
                entry.name,
                entry.task,
                f"{identity}-{index}",
                image,
                (Answer(answer),),
                instructions=(instruction,),
                details={"turn": index},
                **media,
            )
        for _ in range(talk.unanswered):
            yield Rejected(identity, UNANSWERED, bad=False)

    for number, pair in enumerate(entries(path)):
        yield from each([pair], partial(make, number=number))


@dataclass(frozen=True)
class _Turn:
    """What one speaker says, and the images named within."""

    origin: str
    speaker: str
    text: str
    images: tuple[str, ...] = ()

    @classmethod
    def of(cls, row: Row) -> "_Turn":
        """A turn in LLaVA's form or as {"role", "content"}."""
        said = row.text("role" if row.has("role") and not row.has("from") else "from")
        speaker = _SPEAKERS.get(said.strip().lower())
        if speaker is None:
            raise FieldError(
                f"{row.origin}: expected a turn from 'human' or 'user', 'gpt' or 'assistant', or "
                f"'system', found {said[:60]!r}"
            )
        key = "content" if row.has("content") and not row.has("value") else "value"
        images = tuple(_names(row, "image")) + tuple(_names(row, "images"))
        if not row.holds_list(key):
            blank = speaker != "gpt" and row.blank(key)
            return cls(row.origin, speaker, "" if blank else row.text(key), images)
        texts = []
        for part in row.rows(key):  # as chat templates have it
            kind = part.text("type")
            if kind == "text":
                texts.append(part.text("text"))
            elif kind == "image":
                named = [name for name in ("image", "path") if part.has(name)]
                images += tuple(part.text(name) for name in named[:1])
                texts += [] if named else ["<image>"]
            else:
                raise FieldError(f"{part.origin}: a part of the type {kind[:60]!r} is not read")
        return cls(row.origin, speaker, "\n".join(texts), images)


@dataclass(frozen=True)
class _Talk:
    """One annotation: (history and question, answer) of every turn, what is shown, and how many
    turns have no answer or no question.
    """

    turns: list[tuple[str, str]]
    images: tuple[str, ...]
    video: str | None
    unanswered: int

    @classmethod
    def of(cls, row: Row, options: dict[str, str]) -> "_Talk":
        """What an entry says.

        Raises:
            FieldError: the speakers do not alternate, one says nothing, or a mark stands for an
                image that is not named.
            Unused: there are no turns.
        """
        names = {name: options.get(name, name) for name in OPTIONS}
        for other in ("messages", "conversation"):
            if not row.has(names["conversations"]) and row.has(other):
                names["conversations"] = other
        _check_spelling(row, (*names.values(), "images", "videos"))
        said = row.rows(names["conversations"])
        if not said:
            raise Unused("no turns")
        if len(said) > 2 * MAXIMUM_TURNS + 1:
            raise FieldError(
                f"{row.origin}: {len(said)} turns; at most {2 * MAXIMUM_TURNS} "
                "are read of one entry"
            )
        turns = [_Turn.of(turn) for turn in said]
        images, video = _shown(row, names, turns)
        questions = [turn.text for turn in turns if turn.speaker == "human"]
        left = without_marks(questions, len(images), video is not None, row.origin)
        if not images and video is None:
            _check_other_names(row, names)
        texts = iter(left)
        spoken = [(turn, next(texts) if turn.speaker == "human" else turn.text) for turn in turns]
        system = [row.text("system")] if row.has("system") and not row.blank("system") else []
        pairs, unanswered = _pairs(spoken, system)
        return cls(_with_history(pairs, system), images, video, unanswered)


def _pairs(
    spoken: list[tuple[_Turn, str]], system: list[str]
) -> tuple[list[tuple[str, str, str]], int]:
    """((origin, question, answer) of every turn, how many have no answer or no question); adds what
    system turns say to `system`.
    """
    pairs: list[tuple[str, str, str]] = []
    unanswered = at = 0
    while at < len(spoken):
        turn, text = spoken[at]
        following = spoken[at + 1][0].speaker if at + 1 < len(spoken) else None
        if turn.speaker == "human" and following == "gpt":
            if not text.strip():
                raise FieldError(f"{turn.origin}: 'value' holds no question")
            pairs.append((turn.origin, text, spoken[at + 1][1]))
            at += 2
            continue
        last = all(other.speaker == "human" for other, _ in spoken[at:])
        if turn.speaker == "system" and not pairs:
            system += [text] if text.strip() else []
        elif not pairs or last:
            unanswered += 1
        else:
            expected, found = ("human", turn.speaker)
            if turn.speaker == "human":
                turn = spoken[at + 1][0]
                expected, found = "gpt", turn.speaker
            raise FieldError(f"{turn.origin}: expected a turn from {expected!r}, found {found!r}")
        at += 1
    return pairs, unanswered


def _with_history(pairs: list[tuple[str, str, str]], system: list[str]) -> list[tuple[str, str]]:
    history = list(system)
    turns = []
    for origin, question, answer in pairs:
        history.append(question)
        instruction = "\n".join(history)
        if len(instruction) > MAXIMUM_TEXT:
            raise FieldError(f"{origin}: with its history, longer than {MAXIMUM_TEXT}")
        turns.append((instruction, answer))
        history.append(answer)
    return turns


def _names(row: Row, key: str) -> list[str]:
    """The paths at `key`: none where it is missing, null, blank or an empty list."""
    if not row.has(key):
        return []
    if row.holds_list(key):
        names = row.texts(key)
        if not all(name.strip() for name in names):
            raise FieldError(f"{row.origin}: {key!r} must be a list of strings that are not empty")
        return names
    return [] if row.blank(key) else [row.text(key)]


def _shown(
    row: Row, names: dict[str, str], turns: list[_Turn]
) -> tuple[tuple[str, ...], str | None]:
    """The names of the images, or that of the video."""
    images = _names(row, names["image"])
    several = _names(row, "images") if names["image"] != "images" else []
    if images and several and images != several:
        raise FieldError(f"{row.origin}: {names['image']!r} and 'images' differ; keep one of them")
    found = tuple(images or several) + tuple(name for turn in turns for name in turn.images)
    videos = _names(row, names["video"]) or _names(row, "videos")
    if videos and found:
        raise FieldError(f"{row.origin}: names images and a video; one of both is read")
    if len(videos) > 1:
        raise FieldError(f"{row.origin}: names {len(videos)} videos; one is read of an annotation")
    if len(found) > MAXIMUM_IMAGES:
        raise FieldError(f"{row.origin}: {len(found)} images; at most {MAXIMUM_IMAGES} are read")
    return found, videos[0] if videos else None


def _check_spelling(row: Row, names: tuple[str, ...]) -> None:
    """Refuses keys that differ from those that are read in case or blanks alone."""
    for key in row.keys:
        for name in names:
            if key != name and key.strip().casefold() == name.casefold() and not row.has(name):
                raise FieldError(f"{row.origin}: the key {key[:60]!r} is not read; write {name!r}")


def _check_other_names(row: Row, names: dict[str, str]) -> None:
    """Refuses what would be text alone while an image stands under a key that is not read."""
    kinds = {"image": IMAGE_SUFFIXES, "video": VIDEO_SUFFIXES}
    for key in row.keys:
        listed = row.has(key) and row.holds_list(key) and not row.holds_objects(key)
        value = next(iter(row.entries(key)), None) if listed else row.note(key)
        for kind, suffixes in kinds.items():
            is_named = isinstance(value, str) and value.lower().endswith(suffixes)
            if is_named and key != names["id"]:
                raise FieldError(
                    f"{row.origin}: {key[:60]!r} names the {kind} {str(value)[:100]!r} and is not "
                    f"read; call it {names[kind]!r}, or say reader_options: {{{kind}: {key[:60]}}}"
                )
