"""Typed access to what an annotation file says: it may say anything.

A wrong type is a FieldError that names file, entry and key. Readers turn it into Rejected, so one
bad annotation does not end the reading of a file.
"""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import BinaryIO, TypeVar

import ijson

from ibtrain.data.records import Answer, Example

MAXIMUM_LINE_BYTES = 1 << 24
_T = TypeVar("_T")


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


@dataclass(frozen=True)
class Unreadable:
    """A line that is no JSON; no Row accepts it."""

    reason: str


class Row:
    """A JSON object whose values are checked when they are taken.

    Args:
        value: anything; FieldError if it is no object.
        place: file and entry, for messages.
    """

    def __init__(self, value: object, place: str) -> None:
        if isinstance(value, Unreadable):
            raise FieldError(f"{place}: not readable as JSON: {value.reason}")
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
    if isinstance(value, (str, int, float, Decimal)):
        shown = str(value) if isinstance(value, Decimal) else repr(value)
        return shown if len(shown) <= 60 else f"{shown[:60]}..."
    return f"a {type(value).__name__}"


def list_entries(path: Path) -> Iterator[tuple[str, object]]:
    """(place, value) of each entry of a JSON file that holds a list; read piece by piece.

    Raises:
        ValueError: naming the file, where it is damaged or holds something else.
    """
    _expect(path, "list")
    yield from numbered(path, _items(path, "item"))


def entries_under(path: Path, key: str) -> Iterator[tuple[str, object]]:
    """(place, value) of each entry of the list at `key` of a JSON object; read piece by piece.

    Raises:
        ValueError: as list_entries.
    """
    _expect(path, "object")
    found = False
    for pair in numbered(path, _items(path, f"{key}.item")):
        found = True
        yield pair
    if not found and not _has_list(path, key):
        raise ValueError(f"{path}: expected a list at the key {key!r}")


def object_entries(path: Path) -> Iterator[tuple[str, str, object]]:
    """(place, key, value) of each entry of a JSON object; read piece by piece.

    Raises:
        ValueError: as list_entries.
    """
    _expect(path, "object")
    with path.open("rb") as file:
        for key, value in _guarded(path, ijson.kvitems(_without_mark(file), "")):
            yield f"{path.name}[{key[:200]!r}]", key, value


def line_entries(path: Path) -> Iterator[tuple[str, object]]:
    """(place, value) of each line of a JSON Lines file; a damaged line is FieldError's to raise.

    A line that is no JSON is given as a string that no Row accepts, so it is rejected alone.
    """
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAXIMUM_LINE_BYTES + 1):
            number += 1
            place = f"{path.name}:{number}"
            if len(line) > MAXIMUM_LINE_BYTES:
                raise ValueError(f"{path}: line {number} is longer than {MAXIMUM_LINE_BYTES} bytes")
            if not line.strip():
                continue
            try:
                yield place, json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                yield place, Unreadable(str(error)[:200])


def csv_entries(path: Path) -> Iterator[tuple[str, object]]:
    """(place, row by column) of each row of a CSV file with a header; empty cells are left out.

    Raises:
        ValueError: naming the file, where it is damaged.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            for row in reader:
                cells = {
                    key: value
                    for key, value in row.items()
                    if isinstance(key, str) and isinstance(value, str) and value.strip()
                }
                yield f"{path.name}:{reader.line_num}", cells
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as CSV: {error}") from error


def top_level(path: Path) -> str:
    """What a JSON file holds: "list", "object" or "value".

    Raises:
        ValueError: naming the file, where it is not JSON.
    """
    with path.open("rb") as file:
        for event, _ in _guarded(path, ijson.basic_parse(_without_mark(file))):
            return {"start_array": "list", "start_map": "object"}.get(event, "value")
    raise ValueError(f"{path}: not readable as JSON: it is empty")


def _expect(path: Path, kind: str) -> None:
    found = top_level(path)
    if found != kind:
        raise ValueError(f"{path}: expected a JSON {kind} at the top, found a {found}")


def _items(path: Path, prefix: str) -> Iterator[object]:
    with path.open("rb") as file:
        yield from _guarded(path, ijson.items(_without_mark(file), prefix))


def _has_list(path: Path, key: str) -> bool:
    with path.open("rb") as file:
        events = _guarded(path, ijson.parse(_without_mark(file)))
        return any(prefix == key and event == "start_array" for prefix, event, _ in events)


def _without_mark(file: BinaryIO) -> BinaryIO:
    """The file after the byte order mark that some editors write."""
    if file.read(3) != b"\xef\xbb\xbf":
        file.seek(0)
    return file


def _guarded(path: Path, values: Iterable[_T]) -> Iterator[_T]:
    """The values of a parser, its errors as ValueError naming the file."""
    try:
        yield from values
    except (ijson.JSONError, ValueError, ArithmeticError, RecursionError) as error:
        text = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: not readable as JSON: {text}") from error


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
