"""Annotation files -> their entries, one after another; a file is never held as a whole.

JSON is read through a window of text that moves along the file, and each entry is parsed on its
own, so memory is bounded by the largest entry and not by the file. Entries come with their origin
(`file.json[12]`, `file.jsonl:13`), for messages. What is wrong with a whole file (cut off, no JSON,
not the expected layout) is a ValueError naming it; what is wrong with one entry is the reader's.

ijson, the library for this, was tried (docs/data.md): a file whose top is not the expected list
gives no entries and no error, and of a damaged entry it says neither number nor line.
"""

import codecs
import json
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from ibtrain.files import check_not_pointer

MAXIMUM_ENTRY = 1 << 24
"""Characters of one entry (bytes of a line): what is read at once stays below it."""
_WINDOW = 1 << 18
_MAXIMUM_DIGITS = 4000  # Python converts no more than 4300
SAVE_AS_UTF8 = "save it as UTF-8 (in a spreadsheet: CSV UTF-8)"
_BLANK = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class Unreadable:
    """A line that holds no entry, with the reason; no Row accepts it. `bad` tells damage from a row
    of a table in which nothing stands.
    """

    reason: str
    bad: bool = True


def whole_number(text: str) -> float:
    """For `parse_int` of json: what int() refuses for its length is infinite."""
    return int(text) if len(text) <= _MAXIMUM_DIGITS else math.inf


def unrepeated(pairs: list[tuple[str, object]]) -> object:
    """For `object_pairs_hook` of json: an object in which a key stands twice cannot be read, as it
    says two things.
    """
    content = dict(pairs)
    if len(content) == len(pairs):
        return content
    names = [name for name, _ in pairs]
    key = next(name for number, name in enumerate(names) if name in names[:number])
    return Unreadable(f"the key {key[:60]!r} stands twice")


_DECODER = json.JSONDecoder(object_pairs_hook=unrepeated)
# Numbers that int() refuses become infinite.
_LENIENT = json.JSONDecoder(parse_int=whole_number, object_pairs_hook=unrepeated)


class Cursor:
    """A position in a JSON file, and the text that follows it as far as it is read."""

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
        position = self._passed + (self._at if at is None else at)
        raise ValueError(f"{self._path}: not readable as JSON at character {position}: {reason}")

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
            self.damaged(f"not UTF-8: {error.reason}; {SAVE_AS_UTF8}", len(self._text))

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
            reason, position = "it ends early", None
            try:
                value, end = self._parse()
            except json.JSONDecodeError as error:
                reason, position = error.msg, error.pos
            except RecursionError:
                self.damaged("nested too deeply")
            else:
                if end + 3 <= len(self._text) or self._ended:  # else "1.5e-" may go on
                    self._at = end
                    return value
            if self._ended:
                self.damaged(reason, position)
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


def _refuse_other_texts(path: Path) -> None:
    """Refuses what is no text in UTF-8 as its first bytes show: UTF-16 and 32, and what Git LFS
    leaves in a file's stead.
    """
    check_not_pointer(path)
    with path.open("rb") as file:
        head = file.read(4)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in head[:-1]:
        raise ValueError(f"{path}: its text is in UTF-16 or UTF-32; {SAVE_AS_UTF8}")


@contextmanager
def opened(path: Path) -> Iterator[Cursor]:
    """A cursor at the begin of a file.

    Raises:
        ValueError: naming the file, which cannot be read or is no text in UTF-8.
    """
    try:
        _refuse_other_texts(path)
        with path.open("rb") as file:
            yield Cursor(path, file)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def top_level(path: Path) -> str:
    """What a JSON file holds: "list", "object" or "value".

    Raises:
        ValueError: naming the file, where it is empty.
    """
    with opened(path) as cursor:
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
    """(origin, value) of each entry of a JSON file that holds a list.

    Raises:
        ValueError: naming the file, where it is damaged or holds something else.
    """
    _expect(path, "list")
    with opened(path) as cursor:
        yield from numbered(path, cursor.items())
        cursor.finish()


def entries_under(path: Path, key: str) -> Iterator[tuple[str, object]]:
    """(origin, value) of each entry of the list at `key` ("data.dialogs") of a JSON object.

    Raises:
        ValueError: as list_entries, or `key` is missing, is no list, or stands twice.
    """
    _expect(path, "object")
    with opened(path) as cursor:
        yield from numbered(path, _under(path, cursor, tuple(key.split(".")), key))
        cursor.finish()


def _under(path: Path, cursor: Cursor, keys: tuple[str, ...], whole: str) -> Iterator[object]:
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
    """(origin, key, value) of each entry of a JSON object.

    Raises:
        ValueError: as list_entries.
    """
    _expect(path, "object")
    with opened(path) as cursor:
        for key in cursor.members():
            yield f"{path.name}[{key[:200]!r}]", key, cursor.value()
        cursor.finish()


def line_entries(path: Path) -> Iterator[tuple[str, object]]:
    """(origin, value) of each line of a JSON Lines file; blank lines are left out.

    A line that is no JSON is given as Unreadable, which no Row accepts, so it is rejected alone.

    Raises:
        ValueError: naming the file, where a line is too long.
    """
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        origin = f"{path.name}:{number}"
        try:
            yield origin, _LENIENT.decode(line.decode("utf-8-sig"))
        except RecursionError:
            yield origin, Unreadable("not readable as JSON: nested too deeply")
        except UnicodeDecodeError as error:
            yield origin, Unreadable(f"not UTF-8: {error.reason}; {SAVE_AS_UTF8}")
        except ValueError as error:
            yield origin, Unreadable(f"not readable as JSON: {str(error)[:200]}")


def numbered_lines(path: Path, *, cut: bool = False) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers from 1; none is read beyond MAXIMUM_ENTRY bytes.

    Args:
        path: the file.
        cut: give the begin of a line that is longer, and end there.

    Raises:
        ValueError: naming the file, where a line is too long, or no text in UTF-8.
    """
    number = 0
    try:
        _refuse_other_texts(path)
        with path.open("rb") as file:
            while line := file.readline(MAXIMUM_ENTRY + 1):
                number += 1
                if len(line) > MAXIMUM_ENTRY and not cut:
                    raise ValueError(f"{path}: line {number} is longer than {MAXIMUM_ENTRY} bytes")
                yield number, line
                if len(line) > MAXIMUM_ENTRY:
                    return
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def numbered(path: Path, values: Iterable[object]) -> Iterator[tuple[str, object]]:
    """Pairs values with their origin in `path`."""
    for index, value in enumerate(values):
        yield f"{path.name}[{index}]", value
