"""Typed access to what an annotation file says: it may say anything.

A wrong type is a FieldError that names file, entry and key. Readers turn it into Rejected, so one
bad annotation does not end the reading of a file.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ibtrain.data.records import Answer, Example


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
        return self._encodable(key, value)

    def integer(self, key: str) -> int:
        """A whole number; true and false are none."""
        value = self._take(key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(key, "a whole number")
        return value

    def identity(self, key: str) -> str:
        """A whole number or a string, as a string."""
        value = self._take(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return self.text(key)

    def entries(self, key: str) -> list[object]:
        """A list of anything."""
        value = self._take(key)
        if not isinstance(value, list):
            raise self._wrong(key, "a list")
        return value

    def rows(self, key: str) -> list["Row"]:
        """A list of objects."""
        return [
            Row(value, f"{self.place}: {key}[{index}]")
            for index, value in enumerate(self.entries(key))
        ]

    def texts(self, key: str) -> list[str]:
        """A list of strings, which may be empty ones."""
        values = self.entries(key)
        texts = [value for value in values if isinstance(value, str)]
        if len(texts) != len(values):
            raise self._wrong(key, "a list of strings")
        return [self._encodable(key, text) for text in texts]

    def _encodable(self, key: str, text: str) -> str:
        """`text`, unless it holds half a surrogate pair, which JSON can write and UTF-8 cannot."""
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
    if isinstance(value, (str, int, float)):
        shown = repr(value)
        return shown if len(shown) <= 60 else f"{shown[:60]}..."
    return f"a {type(value).__name__}"


def load_json(path: Path) -> object:
    """The content of a JSON file; ValueError naming the file where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON: {error}") from error


def load_list(path: Path) -> list[object]:
    """The content of a JSON file that must hold a list."""
    content = load_json(path)
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected a list at the top, found {_kind(content)}")
    return content


def load_object(path: Path) -> dict[str, object]:
    """The content of a JSON file that must hold an object."""
    content = load_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object at the top, found {_kind(content)}")
    return content


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
    values: Iterable[tuple[str, object]], make: Callable[[Row], Iterable[Example]]
) -> Iterator[Example | Rejected]:
    """Makes examples of (place, annotation) pairs; a failure rejects that annotation alone."""
    for place, value in values:
        try:
            yield from list(make(Row(value, place)))
        except Unused as reason:
            yield Rejected(_identity(value, place), str(reason), bad=False)
        except FieldError as error:
            yield Rejected(_identity(value, place), str(error))


def _identity(value: object, place: str) -> str:
    """The source's own id if it can be told, else the place in the file."""
    if isinstance(value, dict):
        for key in ("question_id", "id", "image_id", "cocoid", "image"):
            if isinstance(value.get(key), (str, int)):
                return str(value[key])[:200]
    return place


def numbered(path: Path, values: Iterable[object]) -> Iterator[tuple[str, object]]:
    """Pairs values with their place in `path`."""
    for index, value in enumerate(values):
        yield f"{path.name}[{index}]", value
