"""Typed access to what an annotation file says: it may say anything.

A wrong type is a FieldError that names file, entry and key. Readers turn it into Rejected, so one
bad annotation does not end the reading of a file.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from ibtrain.data.readers.streams import Unreadable
from ibtrain.data.records import Answer, Example

MAXIMUM_TEXT = 1 << 17
MAXIMUM_IDENTITY = 200


@dataclass(frozen=True)
class Rejected:
    """An annotation that gives no example.

    `bad` tells damage (a missing image, a wrong type), which counts against the budget of bad
    records, from what is well-formed and of no use (no answer), which is only counted.
    """

    id: str
    reason: str
    bad: bool = True


class FieldError(ValueError):
    """An annotation has a value of the wrong type, or names an image that is not there."""


class Unused(ValueError):  # noqa: N818  (not an error: the annotation is left out)
    """An annotation is well-formed and gives no example."""


class Row:
    """A JSON object whose values are checked when they are taken.

    Args:
        value: anything; FieldError if it is no object.
        place: file and entry, for messages.
    """

    def __init__(self, value: object, place: str) -> None:
        if isinstance(value, Unreadable):
            raise FieldError(f"{place}: {value.reason}")
        if not isinstance(value, dict):
            raise FieldError(f"{place}: expected an object, found {_kind(value)}")
        self._value = value
        self.place = place

    def _take(self, key: str) -> object:
        if key not in self._value:
            raise FieldError(f"{self.place}: {key!r} is missing")
        return self._value[key]

    def _wrong(self, key: str, expected: str) -> FieldError:
        return FieldError(
            f"{self.place}: {key!r} must be {expected}, found {_kind(self._value[key])}"
        )

    def has(self, key: str) -> bool:
        """Whether `key` is there and not null."""
        return self._value.get(key) is not None

    def blank(self, key: str) -> bool:
        """Whether `key` is a string with nothing in it."""
        value = self._take(key)
        return isinstance(value, str) and not value.strip()

    def text(self, key: str) -> str:
        """A string that is not blank, untouched."""
        value = self._take(key)
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(key, "a string that is not empty")
        return self._checked(key, value)

    def integer(self, key: str) -> int:
        """A whole number; true and false are none."""
        value = self._take(key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(key, "a whole number")
        return value

    def truth(self, key: str) -> bool:
        """True or false."""
        value = self._take(key)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def identity(self, key: str) -> str:
        """A whole number or a string, as a string."""
        value = self._take(key)
        if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
            raise self._wrong(key, "a whole number or a string that is not empty")
        text = self._checked(key, str(value))
        if len(text) > MAXIMUM_IDENTITY or not text.strip():
            raise self._wrong(key, f"an id of 1 to {MAXIMUM_IDENTITY} characters")
        return text

    def entries(self, key: str) -> list[object]:
        """A list of anything."""
        value = self._take(key)
        if not isinstance(value, list):
            raise self._wrong(key, "a list")
        return value

    def holds_objects(self, key: str) -> bool:
        """Whether `key` is a list that begins with an object."""
        value = self._take(key)
        return isinstance(value, list) and bool(value) and isinstance(value[0], dict)

    def rows(self, key: str) -> list["Row"]:
        """A list of objects."""
        return [
            Row(value, f"{self.place}: {key}[{index}]")
            for index, value in enumerate(self.entries(key))
        ]

    def texts(self, key: str) -> list[str]:
        """A list of strings, which may be empty ones."""
        texts = []
        for value in self.entries(key):
            if not isinstance(value, str):
                raise FieldError(
                    f"{self.place}: {key!r} must be a list of strings, holds {_kind(value)}"
                )
            texts.append(self._checked(key, value))
        return texts

    def text_or_texts(self, key: str) -> list[str]:
        """A string, or a list of strings, which may be empty ones."""
        value = self._take(key)
        if isinstance(value, list):
            return self.texts(key)
        if not isinstance(value, str):
            raise self._wrong(key, "a string or a list of strings")
        return [self._checked(key, value)]

    def _checked(self, key: str, text: str) -> str:
        """`text`, unless it is too long or holds half a surrogate pair, which JSON can write and
        UTF-8 cannot.
        """
        if len(text) > MAXIMUM_TEXT:
            raise FieldError(
                f"{self.place}: {key!r} has {len(text)} characters; at most {MAXIMUM_TEXT} are read"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise FieldError(
                f"{self.place}: {key!r} is not valid Unicode: {error.reason}"
            ) from error
        return text

    def row(self, key: str) -> "Row":
        """An object within."""
        return Row(self._take(key), f"{self.place}: {key}")


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    shown = repr(value[:61] if isinstance(value, str) else value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."


def counted_answers(texts: Iterable[str]) -> tuple[Answer, ...]:
    """Answers with the number of annotators who gave them, most frequent first.

    Raises:
        Unused: every answer is empty.
    """
    counts = Counter(text.strip() for text in texts if text.strip())
    if not counts:
        raise Unused("no answer")
    return tuple(Answer(text, float(count)) for text, count in counts.most_common())


def each(
    values: Iterable[tuple[str, object]], make: Callable[[Row], Iterable[Example | Rejected]]
) -> Iterator[Example | Rejected]:
    """Makes examples of (place, annotation) pairs; a failure rejects that annotation alone. One
    that is Rejected already is passed on.
    """
    for place, value in values:
        if isinstance(value, Rejected):
            yield value
            continue
        try:
            for item in list(make(Row(value, place))):
                yield replace(item, annotation=place) if isinstance(item, Example) else item
        except Unused as reason:
            yield Rejected(_identity(value, place), str(reason), bad=False)
        except FieldError as error:
            yield Rejected(_identity(value, place), str(error))


def _identity(value: object, place: str) -> str:
    """The source's own id if it can be told, else the place in the file."""
    if isinstance(value, dict):
        for key in ("question_id", "id", "image_id", "cocoid", "image"):
            found = value.get(key)
            if isinstance(found, (str, int)) and not isinstance(found, bool) and found != "":
                text = str(found)[:MAXIMUM_IDENTITY]
                return text.encode("utf-8", "backslashreplace").decode()
    return place
