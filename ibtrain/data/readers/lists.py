"""Lists of one's own, in JSON, JSON Lines or CSV -> their entries, one after another.

A name's end says which; JSON Lines in a .json file and a list in a .jsonl file are read as what
they are.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from ibtrain.data.readers.streams import (
    line_entries,
    list_entries,
    numbered_lines,
    opened,
    top_level,
    whole_number,
)
from ibtrain.data.readers.tables import csv_entries

_LISTS_OF_AN_ENTRY = ("conversations", "conversation", "messages", "answers")


def entries(path: Path) -> Iterator[tuple[str, object]]:
    """(origin, value) of each entry of a list in JSON (.json), JSON Lines (.jsonl) or CSV (.csv,
    .tsv).

    Raises:
        ValueError: as those of each form, or the name ends in something else.
    """
    forms = {
        ".json": _json_entries,
        ".jsonl": _line_entries,
        ".csv": csv_entries,
        ".tsv": csv_entries,
    }
    form = forms.get(path.suffix.lower())
    if form is None:
        raise ValueError(f"{path}: a list is read from {', '.join(forms)}, told by the name's end")
    yield from form(path)


def _line_entries(path: Path) -> Iterator[tuple[str, object]]:
    """The lines of a .jsonl file, or of the JSON list that it holds."""
    begin, is_whole, is_alone = _first_line(path)
    is_list = begin.startswith("[") and (is_alone or not is_whole)
    yield from list_entries(path) if is_list else line_entries(path)


def _json_entries(path: Path) -> Iterator[tuple[str, object]]:
    """The entries of a .json file: of its list, of its lines, or of objects that follow each other.

    Raises:
        ValueError: as list_entries, or it is one object that holds the list within.
    """
    if top_level(path) != "object":
        yield from list_entries(path)
        return
    _, is_whole, is_alone = _first_line(path)
    if is_whole and not is_alone:
        yield from line_entries(path)
        return
    _refuse_list_within(path)
    with opened(path) as cursor:
        number = 0
        while cursor.peek():
            yield f"{path.name}[{number}]", cursor.value()
            number += 1


def _first_line(path: Path) -> tuple[str, bool, bool]:
    """(its begin, whether it is whole as JSON, whether it is the only one) of the first line that
    is not blank.
    """
    begin, is_whole = "", False
    for _, line in numbered_lines(path, cut=True):
        if not line.strip():
            continue
        if begin:
            return begin, is_whole, False
        try:
            text = line.decode("utf-8-sig").lstrip()
            begin = text[:1]
            json.loads(text, parse_int=whole_number)
            is_whole = True
        except (ValueError, RecursionError):
            begin = begin or "?"
    return begin, is_whole, True


def _refuse_list_within(path: Path) -> None:
    """Refuses a file of one object in which lists of other objects lie."""
    with opened(path) as cursor:
        key, lists = None, []
        for key in cursor.members():
            first = None
            if cursor.peek() == "[":
                for number, value in enumerate(cursor.items()):
                    first = first if number else value
            else:
                cursor.skip()
            if isinstance(first, dict) and key not in _LISTS_OF_AN_ENTRY:
                lists.append(key[:60])
        if (lists or key is None) and not cursor.peek():
            named = " or ".join(map(repr, lists[:10]))
            within = f"its list {named} by itself" if lists else "a list"
            raise ValueError(
                f"{path}: expected a JSON list at the top, found an object; save {within}"
            )
