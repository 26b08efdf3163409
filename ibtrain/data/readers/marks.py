"""The marks in a conversation's text that stand for an image or a video, and what only looks so."""

import re

from ibtrain.data.readers.fields import FieldError

_MARK = re.compile(r"<(?:image|video)>\n|\n<(?:image|video)>|<(?:image|video)>")
_BARE = re.compile(r"(<image>|<video>)")
# What other programs write instead.
_FOREIGN = re.compile(
    r"\s*<\|?(?:image|img|video|picture)(?:[ _-]?\d{1,3}|here|[ _-]?placeholder|_pad)?\|?>",
    re.IGNORECASE,
)
_NUMBERED = re.compile(r"<\|?(?:image|img|picture|video)[ _-]?(?:\d{1,3}|pad)\|?>", re.IGNORECASE)
_NAMED = re.compile(r"<(img|video)>[^<>\n]{1,1000}</\1>")


def without_marks(texts: list[str], images: int, video: bool, origin: str) -> list[str]:
    """What a conversation's questions say, without the marks that stand for its images.

    A mark that begins or ends a text or has a line to itself is meant as an image, and must have
    one. A mark within a sentence stands for an image as long as some are left, and is else a part
    of the sentence. `<image>` may stand for a video, too.

    Args:
        texts: the questions in order.
        images: how many images the marks may stand for.
        video: whether they may stand for a video instead.
        origin: of the annotation, for messages.

    Raises:
        FieldError: a mark has no image, or an image is named in the text itself.
    """
    shown = {"<image>": images or int(video), "<video>": int(video)}
    marks = [(number, *mark) for number, text in enumerate(texts) for mark in _marks(text)]
    meant = [kind for _, kind, is_apart in marks if is_apart]
    for kind in dict.fromkeys(meant):
        count = len(meant) if video else meant.count(kind)
        if count > shown[kind]:
            what = kind.strip("<>")
            raise FieldError(
                f"{origin}: {count} x {kind} stands in the text for {what}s, of which "
                f"{shown[kind] or 'none'} is named; name one for each, or take it out"
            )
    if not images and not video:
        _refuse_other_marks(texts, origin)
    free = (images or int(video)) - len(meant)
    taken: list[list[bool]] = [[] for _ in texts]
    for number, kind, is_apart in marks:
        is_taken = is_apart or (free > 0 and shown[kind] > 0)
        free -= is_taken and not is_apart
        taken[number].append(is_taken)
    return [_without(text, flags) for text, flags in zip(texts, taken, strict=True)]


def _marks(text: str) -> list[tuple[str, bool]]:
    """(mark, whether it begins or ends the text or has a line to itself) of each mark."""
    pieces = _BARE.split(text)
    between = pieces[::2]
    if len(between) == 1:
        return []
    filled = [number for number, piece in enumerate(between) if piece.strip()]
    first, last = (filled[0], filled[-1]) if filled else (len(between), -1)
    is_markup = "</image>" in text or "</video>" in text
    found = []
    for number, mark in enumerate(pieces[1::2]):
        before, after = between[number], between[number + 1]
        alone = (
            "\n" in before
            and "\n" in after
            and not before.rpartition("\n")[2].strip()
            and not after.partition("\n")[0].strip()
        )
        apart = number < first or number + 1 > last or alone
        found.append((mark, apart and not is_markup))
    return found


def _without(text: str, taken: list[bool]) -> str:
    """A text without the marks that are `taken`."""
    flags = iter(taken)
    return _MARK.sub(lambda mark: "" if next(flags) else mark.group(), text)


def _refuse_other_marks(texts: list[str], origin: str) -> None:
    for text in texts:
        foreign = _FOREIGN.match(text) or _NUMBERED.search(text)
        named = _NAMED.search(text)
        if foreign and not _BARE.fullmatch(foreign.group().strip()):
            raise FieldError(
                f"{origin}: {foreign.group().strip()!r} stands in the text, and no image is named; "
                "name it as 'image', and write <image> for it"
            )
        if named:
            raise FieldError(
                f"{origin}: the text names {named.group()[:100]!r}; name it as 'image', and write "
                "<image> for it"
            )
