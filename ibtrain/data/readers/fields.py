"""Typed access to what an annotation file says: it may say anything.

A wrong type is a FieldError that names file, entry and key. Readers turn it into Rejected, so one
bad annotation does not end the reading of a file.
"""

import math
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
    records, from what is well-formed and unusable (no answer), which is only counted.
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
        value: anything; FieldError if it is no object, Unused if it is an empty row.
        origin: file and entry, for messages.
    """

    def __init__(self, value: object, origin: str) -> None:
        if isinstance(value, Unreadable):
            raise (FieldError(f"{origin}: {value.reason}") if value.bad else Unused(value.reason))
        if not isinstance(value, dict):
            raise FieldError(f"{origin}: expected an object, found {_kind(value)}")
        self._value = value
        self.origin = origin

    def _take(self, key: str) -> object:
        if key in self._value:
            return self._value[key]
        near = [name for name in self._value if name.strip().casefold() == key.casefold()]
        there = f"; write {near[0][:60]!r} as {key!r}" if near else ""
        raise FieldError(f"{self.origin}: {key!r} is missing{there}")

    def _wrong(self, key: str, expected: str) -> FieldError:
        return FieldError(
            f"{self.origin}: {key!r} must be {expected}, found {_kind(self._value[key])}"
        )

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys, in their order."""
        return tuple(self._value)

    def spelled(self, names: tuple[str, ...]) -> "Row":
        """The same, with keys that differ from one of `names` in case or blanks alone called so."""
        known = {name.casefold(): name for name in names}
        value: dict[str, object] = {}
        for key, found in self._value.items():
            value.setdefault(known.get(key.strip().casefold()) or key, found)
        exact = {name: self._value[name] for name in names if name in self._value}
        return Row(value | exact, self.origin)

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

    def note(self, key: str) -> str | None:
        """A string that only a report uses: None where it is missing, blank or something else."""
        try:
            return self.text(key)
        except FieldError:
            return None

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
        if isinstance(value, float) and value.is_integer():  # as tables with gaps write numbers
            value = int(value)
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

    def holds_list(self, key: str) -> bool:
        """Whether `key` is a list."""
        return isinstance(self._take(key), list)

    def holds_objects(self, key: str) -> bool:
        """Whether `key` is a list that begins with an object."""
        value = self._take(key)
        return isinstance(value, list) and bool(value) and isinstance(value[0], dict)

    def rows(self, key: str) -> list["Row"]:
        """A list of objects."""
        return [
            Row(value, f"{self.origin}: {key}[{index}]")
            for index, value in enumerate(self.entries(key))
        ]

    def texts(self, key: str) -> list[str]:
        """A list of strings, which may be empty ones."""
        texts = []
        for value in self.entries(key):
            if not isinstance(value, str):
                raise FieldError(
                    f"{self.origin}: {key!r} must be a list of strings, holds {_kind(value)}"
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

    def words(self, key: str) -> list[str]:
        """A string, a number, which is its own text, or a list of them; strings may be empty."""
        value = self._take(key)
        return [self._word(key, one) for one in (value if isinstance(value, list) else [value])]

    def _word(self, key: str, value: object) -> str:
        if isinstance(value, bool):
            said = "true" if value else "false"
            raise FieldError(
                f"{self.origin}: {key!r} is {said}, which may mean a word or a mark; write the "
                f'word that is meant in quotes ("yes", "{said}")'
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise FieldError(f"{self.origin}: {key!r} must be a text or a finite number")
        if not isinstance(value, (str, int, float)):
            raise FieldError(
                f"{self.origin}: {key!r} must be a text, a number or a list of them, found "
                f"{_kind(value)}"
            )
        return self._checked(key, str(value))

    def _checked(self, key: str, text: str) -> str:
        """`text`, unless it is too long or holds half a surrogate pair, which JSON can write and
        UTF-8 cannot.
        """
        if len(text) > MAXIMUM_TEXT:
            raise FieldError(
                f"{self.origin}: {key!r} has {len(text)} characters; at most {MAXIMUM_TEXT} are "
                "read"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise FieldError(
                f"{self.origin}: {key!r} is not valid Unicode: {error.reason}"
            ) from error
        return text

    def within(self, key: str) -> "Row":
        """An object within that only a report uses; an empty one where there is none."""
        value = self._value.get(key)
        return Row(value if isinstance(value, dict) else {}, f"{self.origin}: {key}")


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, Unreadable):
        return f"an object in which {value.reason}"
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
    """Makes examples of (origin, annotation) pairs; a failure rejects that annotation alone. One
    that is Rejected already is passed on.
    """
    for origin, value in values:
        if isinstance(value, Rejected):
            yield value
            continue
        try:
            for item in list(make(Row(value, origin))):
                yield replace(item, annotation=origin) if isinstance(item, Example) else item
        except Unused as reason:
            yield Rejected(_identity(value, origin), str(reason), bad=False)
        except FieldError as error:
            yield Rejected(_identity(value, origin), str(error))


def _identity(value: object, origin: str) -> str:
    """The source's own id if it can be told, else its origin."""
    if isinstance(value, dict):
        for key in ("question_id", "id", "image_id", "cocoid", "image"):
            found = value.get(key)
            if isinstance(found, (str, int)) and not isinstance(found, bool) and found != "":
                text = str(found)[:MAXIMUM_IDENTITY]
                return text.encode("utf-8", "backslashreplace").decode()
    return origin
