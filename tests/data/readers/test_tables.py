"""CSV as spreadsheets and programs write it."""

from pathlib import Path

import pytest

from ibtrain.data.readers.streams import Unreadable
from ibtrain.data.readers.tables import csv_entries


def test_rows_of_csv(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_bytes('\ufeffa,b\r\n1,"x\ny"\r\n,\r\n2\r\n1,2,3\r\n'.encode())
    assert list(csv_entries(path)) == [
        ("a.csv:3", {"a": "1", "b": "x\ny"}),
        ("a.csv:4", Unreadable("empty row", bad=False)),
        ("a.csv:5", {"a": "2"}),
        ("a.csv:6", Unreadable("3 cells, the header names 2")),
    ]
    for text, message in (
        ("a,a\n", "names the column 'a' twice"),
        ('a\n"b', "line 2"),
        ("a\n\udcff", "line 2: .*utf-8.*; save it as UTF-8"),
    ):
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(ValueError, match=message):
            list(csv_entries(path))
