"""Annotation files -> their entries, one after another; a file is never held as a whole.

JSON is read through a window of text that moves along the file, and each entry is parsed on its
own, so memory is bounded by the largest entry and not by the file. Entries come with their place
(`file.json[12]`, `file.jsonl:13`), for messages. What is wrong with a whole file (cut off, no JSON,
not the expected layout) is a ValueError naming it; what is wrong with one entry is the reader's.

ijson, the library for this, was tried (docs/data.md): a file whose top is not the expected list
gives no entries and no error, and of a damaged entry it says neither number nor line.
"""

import codecs
import csv
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

MAXIMUM_ENTRY = 1 << 24
"""Characters of one entry (bytes of a line): what is read at once stays below it."""
_WINDOW = 1 << 18
_MAXIMUM_DIGITS = 4000  # Python converts no more than 4300
_BLANK = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class Unreadable:
    """A line that holds no entry, with the reason; no Row accepts it."""

    reason: str


def _whole_number(text: str) -> float:
    return int(text) if len(text) <= _MAXIMUM_DIGITS else math.inf


_DECODER = json.JSONDecoder()
_LENIENT = json.JSONDecoder(parse_int=_whole_number)  # numbers that int() refuses become infinite


class _Cursor:
    """A place in a JSON file, and the text that follows it as far as it is read."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._at = 0
        self._passed = 0  # characters before the text
        self._ended = False

    def damaged(self, reason: str, at: int | None = None) -> NoReturn:
        """Raises ValueError with the file and the character, counted from 0."""
        place = self._passed + (self._at if at is None else at)
        raise ValueError(f"{self._path}: not readable as JSON at character {place}: {reason}")

    def _read_on(self) -> None:
        """Lengthens the text to twice what is left of it."""
        self._passed += self._at
        self._text = self._text[self._at :]
        self._at = 0
        data = self._file.read(max(_WINDOW, len(self._text)))
        self._ended = not data
        try:
            self._text += self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            self.damaged(f"not UTF-8: {error.reason}", len(self._text))

    def peek(self) -> str:
        """The next character that is not blank, "" at the end."""
        while True:
            blank = _BLANK.match(self._text, self._at)
            assert blank is not None  # it matches nothing, too
            self._at = blank.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._read_on()

    def take(self, marks: str) -> str:
        """Passes the next character, which must be one of `marks`."""
        mark = self.peek()
        if not mark:
            self.damaged("it ends early")
        if mark not in marks:
            self.damaged(f"expected {' or '.join(marks)}, found {mark!r}")
        self._at += 1
        return mark

    def value(self) -> object:
        """Passes the next value and gives it."""
        if not self.peek():
            self.damaged("it ends early")
        while True:
            reason, place = "it ends early", None
            try:
                value, end = self._parse()
            except json.JSONDecodeError as error:
                reason, place = error.msg, error.pos
            except RecursionError:
                self.damaged("nested too deeply")
            else:
                if end + 3 <= len(self._text) or self._ended:  # else "1.5e-" may go on
                    self._at = end
                    return value
            if self._ended:
                self.damaged(reason, place)
            if len(self._text) - self._at > MAXIMUM_ENTRY:
                self.damaged(f"an entry of more than {MAXIMUM_ENTRY} characters, or {reason}")
            self._read_on()

    def _parse(self) -> tuple[object, int]:
        try:
            return _DECODER.raw_decode(self._text, self._at)
        except json.JSONDecodeError:
            raise
        except ValueError:  # a whole number of more digits than int() takes
            return _LENIENT.raw_decode(self._text, self._at)

    def items(self) -> Iterator[object]:
        """Passes a list and gives its values."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
            if self.take(",]") == "]":
                return

    def members(self) -> Iterator[str]:
        """Passes an object and gives its keys; whoever takes one passes its value, then goes on."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            if self.peek() != '"':
                self.damaged("expected a key in double quotes")
            key = self.value()
            assert isinstance(key, str)  # as it begins with a quote
            self.take(":")
            yield key
            if self.take(",}") == "}":
                return

    def skip(self) -> None:
        """Passes a value that is not wanted, however long."""
        if self.peek() == "[":
            for _ in self.items():
                pass
        else:
            self.value()

    def finish(self) -> None:
        """Raises ValueError unless nothing follows."""
        if self.peek():
            self.damaged("something follows the end")


@contextmanager
def _opened(path: Path) -> Iterator[_Cursor]:
    try:
        with path.open("rb") as file:
            yield _Cursor(path, file)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def top_level(path: Path) -> str:
    """What a JSON file holds: "list", "object" or "value".

    Raises:
        ValueError: naming the file, where it is empty.
    """
    with _opened(path) as cursor:
        mark = cursor.peek()
        if not mark:
            cursor.damaged("it is empty")
        return {"[": "list", "{": "object"}.get(mark, "value")


def _expect(path: Path, kind: str) -> None:
    found = top_level(path)
    if found != kind:
        article = "an" if found == "object" else "a"
        raise ValueError(f"{path}: expected a JSON {kind} at the top, found {article} {found}")


def list_entries(path: Path) -> Iterator[tuple[str, object]]:
    """(place, value) of each entry of a JSON file that holds a list.

    Raises:
        ValueError: naming the file, where it is damaged or holds something else.
    """
    _expect(path, "list")
    with _opened(path) as cursor:
        yield from numbered(path, cursor.items())
        cursor.finish()


def entries_under(path: Path, key: str) -> Iterator[tuple[str, object]]:
    """(place, value) of each entry of the list at `key` ("data.dialogs") of a JSON object.

    Raises:
        ValueError: as list_entries, or `key` is missing, is no list, or stands twice.
    """
    _expect(path, "object")
    with _opened(path) as cursor:
        yield from numbered(path, _under(path, cursor, tuple(key.split(".")), key))
        cursor.finish()


def _under(path: Path, cursor: _Cursor, keys: tuple[str, ...], whole: str) -> Iterator[object]:
    if not keys:
        if cursor.peek() != "[":
            raise ValueError(f"{path}: expected a list at the key {whole!r}")
        yield from cursor.items()
        return
    if cursor.peek() != "{":
        raise ValueError(f"{path}: expected an object with the key {whole!r}")
    found = False
    for key in cursor.members():
        if key != keys[0]:
            cursor.skip()
        elif found:
            raise ValueError(f"{path}: the key {key[:200]!r} stands twice")
        else:
            found = True
            yield from _under(path, cursor, keys[1:], whole)
    if not found:
        raise ValueError(f"{path}: expected a list at the key {whole!r}")


def object_entries(path: Path) -> Iterator[tuple[str, str, object]]:
    """(place, key, value) of each entry of a JSON object.

    Raises:
        ValueError: as list_entries.
    """
    _expect(path, "object")
    with _opened(path) as cursor:
        for key in cursor.members():
            yield f"{path.name}[{key[:200]!r}]", key, cursor.value()
        cursor.finish()


def line_entries(path: Path) -> Iterator[tuple[str, object]]:
    """(place, value) of each line of a JSON Lines file; blank lines are left out.

    A line that is no JSON is given as Unreadable, which no Row accepts, so it is rejected alone.

    Raises:
        ValueError: naming the file, where a line is too long.
    """
    for number, line in _lines(path):
        if not line.strip():
            continue
        place = f"{path.name}:{number}"
        try:
            yield place, json.loads(line.decode("utf-8-sig"), parse_int=_whole_number)
        except RecursionError:
            yield place, Unreadable("not readable as JSON: nested too deeply")
        except ValueError as error:
            yield place, Unreadable(f"not readable as JSON: {str(error)[:200]}")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers from 1; none is read beyond MAXIMUM_ENTRY bytes."""
    number = 0
    try:
        with path.open("rb") as file:
            while line := file.readline(MAXIMUM_ENTRY + 1):
                number += 1
                if len(line) > MAXIMUM_ENTRY:
                    raise ValueError(f"{path}: line {number} is longer than {MAXIMUM_ENTRY} bytes")
                yield number, line
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def csv_entries(path: Path) -> Iterator[tuple[str, object]]:
    """(place, row by column) of each row of a CSV file with a header; empty cells are left out.

    Raises:
        ValueError: naming the file, where it is damaged or its header names a column twice.
    """
    text = _CsvText(path)
    reader = csv.reader(text, strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            text.row_bytes = 0
            place = f"{path.name}:{reader.line_num}"
            if header is None:
                header = _header(path, cells)
            elif len(cells) > len(header):
                yield place, Unreadable(f"{len(cells)} cells, the header names {len(header)}")
            elif cells:
                row = dict(zip(header, cells, strict=False))
                yield place, {name: cell for name, cell in row.items() if cell.strip()}
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: not readable as CSV at line {reader.line_num + 1}: {error}"
        ) from error


class _CsvText:
    """The lines of a CSV file as text; a row of more than MAXIMUM_ENTRY bytes is refused."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.row_bytes = 0

    def __iter__(self) -> Iterator[str]:
        for number, line in _lines(self._path):
            self.row_bytes += len(line)
            if self.row_bytes > MAXIMUM_ENTRY:
                raise ValueError(
                    f"{self._path}: the row that ends after line {number} is longer than "
                    f"{MAXIMUM_ENTRY} bytes; is a quote not closed?"
                )
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")


def _header(path: Path, cells: list[str]) -> list[str]:
    header = [name.strip() for name in cells]
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: its header names the column {repeated[0][:200]!r} twice")
    return header


def entries(path: Path) -> Iterator[tuple[str, object]]:
    """(place, value) of each entry of a list in JSON (.json), JSON Lines (.jsonl) or CSV (.csv).

    Raises:
        ValueError: as those of each form, or the name ends in something else.
    """
    forms = {".json": list_entries, ".jsonl": line_entries, ".csv": csv_entries}
    form = forms.get(path.suffix.lower())
    if form is None:
        raise ValueError(f"{path}: a list is read from {', '.join(forms)}, told by the name's end")
    yield from form(path)


def numbered(path: Path, values: Iterable[object]) -> Iterator[tuple[str, object]]:
    """Pairs values with their place in `path`."""
    for index, value in enumerate(values):
        yield f"{path.name}[{index}]", value
