"""Lists of any size, read entry by entry; damage is told with the file and where it is."""

import json
import math
import tracemalloc
from pathlib import Path

import pytest

from ibtrain.data.readers import streams
from ibtrain.data.readers.lookup import Lookup
from ibtrain.data.readers.streams import (
    Unreadable,
    entries_under,
    line_entries,
    list_entries,
    object_entries,
)


@pytest.mark.parametrize("window", [1, 2, 3, 7, 1 << 18])
def test_entries_are_the_same_wherever_the_window_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
):
    monkeypatch.setattr(streams, "_WINDOW", window)
    values = [12, -3.5e-7, 'ü\u2028🐈\\"', [], {"a": [{"b": None}], "é": True}, False, 1234567]
    path = tmp_path / "a.json"
    path.write_text(
        f" \n{json.dumps(values, ensure_ascii=False, indent=1)}\r\n", encoding="utf-8-sig"
    )
    assert [value for _, value in list_entries(path)] == values
    path.write_text(json.dumps({"x": [1, [2]], "y": {"q": {}, "data": values}, "z": "]"}))
    found = list(entries_under(path, "y.data"))
    assert found == [(f"a.json[{index}]", value) for index, value in enumerate(values)]
    path.write_text(json.dumps({"1": 5, "ü'": values}))
    assert list(object_entries(path)) == [
        ("a.json['1']", "1", 5),
        ('a.json["ü\'"]', "ü'", values),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "it is empty"),
        (b"[", "character 1: it ends early"),
        (b"[1,2", "character 4: it ends early"),
        (b"[1 2]", "character 3: expected , or ], found '2'"),
        (b"[1,]", "character 3: Expecting value"),
        (b"[12]x", "character 4: something follows"),
        (b'["a', "character 1: Unterminated string"),
        (b'["\xff"]', "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'[{"a":' * 100_000, "nested too deeply"),
        (b'{"data": []}', "expected a JSON list at the top, found an object"),
        (b'["' + b"a" * (1 << 25), "an entry of more than 16777216 characters"),
    ],
)
def test_damage_is_told_with_its_place(tmp_path: Path, text: bytes, message: str):
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(ValueError) as error:
        list(list_entries(path))
    assert str(error.value).startswith(str(path)) and message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "expected a list at the key 'data.dialogs'"),
        ('{"data": []}', "expected an object with the key 'data.dialogs'"),
        ('{"data": {"dialogs": {}}}', "expected a list at the key 'data.dialogs'"),
        ('{"data": {"dialogs": []}, "data": {"dialogs": []}}', "the key 'data' stands twice"),
        ('{"data": {"dialogs": [1]}', "it ends early"),
        ("{5: 1}", "expected a key"),
    ],
)
def test_a_list_within_must_be_there_once(tmp_path: Path, text: str, message: str):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        list(entries_under(path, "data.dialogs"))


def test_numbers_without_end_are_infinite(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text(f"[{'9' * 1_000_000}, 1e999, 7]")
    assert [value for _, value in list_entries(path)] == [math.inf, math.inf, 7]


def test_a_damaged_line_is_alone(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n{"b"\n\xff\n' + b"[" * 100_000 + b"\n[2]")
    found = list(line_entries(path))
    assert found[0] == ("a.jsonl:1", {"a": 1}) and found[-1] == ("a.jsonl:6", [2])
    assert [place for place, value in found if isinstance(value, Unreadable)] == [
        "a.jsonl:3",
        "a.jsonl:4",
        "a.jsonl:5",
    ]


def test_memory_does_not_grow_with_the_file(tmp_path: Path):
    path = tmp_path / "a.json"
    row = json.dumps({"question_id": 1, "text": "x" * 1000})
    path.write_text(f'{{"other": [{row}{f",{row}" * 9999}], "data": [{row}{f",{row}" * 9999}]}}')
    assert path.stat().st_size > 20_000_000
    tracemalloc.start()
    assert sum(1 for _ in entries_under(path, "data")) == 10_000
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()


def test_the_first_of_several_counts_and_damage_is_told_when_asked_for():
    rows = [{"id": 1, "a": "x"}, {"id": "1", "a": "y"}, {"id": 2, "a": 5}, {"a": "z"}, 7]
    lookup = Lookup(
        ((f"f[{n}]", row) for n, row in enumerate(rows)), "id", lambda row: row.text("a")
    )
    assert lookup.get("1") == "x" and lookup.get("3") is None
    with pytest.raises(ValueError, match=r"f\[2\]: 'a' must be a string"):
        lookup.get("2")
