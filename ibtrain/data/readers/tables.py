"""CSV as spreadsheets and programs write it -> its rows, one after another."""

import csv
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from ibtrain.data.readers.streams import (
    MAXIMUM_ENTRY,
    SAVE_AS_UTF8,
    Unreadable,
    numbered_lines,
)

_SEPARATORS = ",;\t|"
_TOLD = re.compile(r"\s*\"?sep=([,;\t|])\"?[,;\t|]*\s*", re.IGNORECASE)  # a spreadsheet's hint
_QUOTED = re.compile(r'"[^"]*"')


def csv_entries(path: Path) -> Iterator[tuple[str, object]]:
    """(origin, row by column) of each row of a CSV file with a header; empty cells are left out.

    Cells are separated by what stands most often in the header (comma, semicolon, tab or bar), or
    by what a first line `sep=;` says. Columns without a name are left out where nothing stands in
    them (the first may number the rows, as pandas does).

    Raises:
        ValueError: naming the file, where it is damaged or its header names a column twice.
    """
    text = _CsvText(path)
    lines = iter(text)
    passed = before = 0
    header: list[str] | None = None
    try:
        begin = next(lines, "")
        told = _TOLD.fullmatch(begin)
        if told:
            begin, before = next(lines, ""), 1
        separator = told[1] if told else max(_SEPARATORS, key=_QUOTED.sub("", begin).count)
        reader = csv.reader(chain([begin], lines), strict=True, delimiter=separator)
        for cells in reader:
            text.row_bytes = 0
            passed = reader.line_num
            if header is not None and cells:
                yield f"{path.name}:{passed + before}", _row(header, cells)
            elif cells:
                header = _header(path, cells)
    except (csv.Error, UnicodeDecodeError) as error:
        remedy = f"; {SAVE_AS_UTF8}" if isinstance(error, UnicodeDecodeError) else ""
        raise ValueError(
            f"{path}: not readable as CSV at line {text.number}: {error}{remedy}"
        ) from error


class _CsvText:
    """The lines of a CSV file as text; a row of more than MAXIMUM_ENTRY bytes is refused.

    `number` is that of the last line, from 1.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.row_bytes = self.number = 0

    def __iter__(self) -> Iterator[str]:
        for number, line in numbered_lines(self._path):
            self.number = number
            self.row_bytes += len(line)
            if self.row_bytes > MAXIMUM_ENTRY:
                raise ValueError(
                    f"{self._path}: the row that ends after line {number} is longer than "
                    f"{MAXIMUM_ENTRY} bytes; is a quote not closed?"
                )
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")


def _header(path: Path, cells: list[str]) -> list[str]:
    header = [name.strip() for name in cells]
    repeated = [name for name, count in Counter(filter(None, header)).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: its header names the column {repeated[0][:200]!r} twice")
    return header


def _row(header: list[str], cells: list[str]) -> object:
    """The cells of a row by the names of their columns."""
    if not any(cell.strip() for cell in cells):
        return Unreadable("empty row", bad=False)
    if any(cell.strip() for cell in cells[len(header) :]):
        return Unreadable(f"{len(cells)} cells, the header names {len(header)}")
    named = list(zip(header, cells, strict=False))
    for name, cell in named[1:]:
        if not name and cell.strip():
            return Unreadable(
                f"{cell[:60]!r} stands in a column without a name; name it, or put a cell that "
                "holds a separator in quotes"
            )
    return {name: cell for name, cell in named if cell.strip()}
