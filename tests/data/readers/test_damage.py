"""Damaged annotation files: a record, a rejection or a ValueError that names the file."""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ibtrain.data import catalog, readers
from ibtrain.data.instructions import plain_input, render
from ibtrain.data.readers import Rejected
from tests.data.readers.harness import FIXTURES, raw_directory

ANNOTATIONS = (".json", ".jsonl", ".csv", ".txt")
LAYOUTS = sorted(
    f"{path.parent.name}/{path.name}"
    for path in FIXTURES.glob("*/*")
    if path.is_dir() and (catalog.DATASETS / f"{path.parent.name}.yaml").is_file()
)
SWAPS: tuple[Any, ...] = (
    None,
    True,
    -1,
    10**400,
    1e308,
    float("nan"),
    "",
    [],
    {},
    "\ud800",
    "../" * 50,
    "x" * 200_000,
    [[[[]]]],
)
INSERTS = (b"[" * 50_000, b'{"a":' * 50_000, b"9" * 50_000, b'"', b"\0", b"1e999999", b"-", b"\xff")


def swapped(value: Any, random: Random) -> Any:
    """The value with something in it exchanged, taken out or put into a list."""
    value = deepcopy(value)
    node, parent, key = value, None, None
    for _ in range(random.randrange(1, 7)):
        if not isinstance(node, (dict, list)) or not node:
            break
        parent, key = (
            node,
            random.choice(list(node) if isinstance(node, dict) else range(len(node))),
        )
        node = parent[key]
    if parent is None:
        return random.choice(SWAPS)
    choice = random.randrange(3)
    if choice == 0 and isinstance(parent, dict):
        del parent[key]
    else:
        parent[key] = [node] if choice == 1 else random.choice(SWAPS)
    return value


def damaged(path: Path, random: Random) -> bytes:
    data = bytearray(path.read_bytes())
    choice = random.randrange(5)
    if choice == 0:
        return bytes(data[: random.randrange(len(data) + 1)])
    if choice == 1:
        for _ in range(random.choice([1, 3, 30])):
            data[random.randrange(len(data))] = random.randrange(256)
        return bytes(data)
    if choice == 2 or path.suffix in (".csv", ".txt"):
        place = random.randrange(len(data))
        return bytes(data[:place] + random.choice(INSERTS) + data[place:])
    try:
        if path.suffix == ".json":
            return json.dumps(swapped(json.loads(data), random)).encode()
        lines = data.decode().splitlines()
        place = random.randrange(len(lines))
        lines[place] = json.dumps(swapped(json.loads(lines[place] or "{}"), random))
        return "\n".join(lines).encode()
    except ValueError:
        return bytes(data)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_damaged_file_is_told_and_no_more(tmp_path: Path, layout: str):
    entry = catalog.get(layout.partition("/")[0])
    whole = raw_directory(layout, tmp_path)
    names = [
        path.relative_to(whole)
        for path in sorted(whole.rglob("*"))
        if path.suffix in ANNOTATIONS and path.is_file()
    ]
    assert names
    random = Random(layout)
    for _ in range(12):
        name = random.choice(names)
        shutil.copyfile(whole / name, tmp_path / "kept")
        (whole / name).write_bytes(damaged(whole / name, random))
        for split in entry.splits:
            read_all(whole, split, entry, name.name)
        shutil.copyfile(tmp_path / "kept", whole / name)


def read_all(raw: Path, split: str, entry: catalog.DatasetEntry, name: str) -> None:
    """Reads a split; what it gives can be rendered and stored."""
    try:
        for item in readers.read(raw, split, entry):
            if isinstance(item, Rejected):
                f"{item.id} {item.reason}".encode()
                continue
            texts = [item.id, *render(item, entry), plain_input(item, entry)]
            texts += [answer.text for answer in item.answers]
            "".join(texts).encode()
            json.dumps(item.details, ensure_ascii=False).encode()
            assert all(answer.weight > 0 for answer in item.answers)
    except ValueError as error:
        assert name in str(error) or "lacks the annotations" in str(error)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"7", b"null", b"\xff"])
def test_a_file_that_is_something_else_is_named(tmp_path: Path, layout: str, content: bytes):
    entry = catalog.get(layout.partition("/")[0])
    raw = raw_directory(layout, tmp_path)
    for path in raw.rglob("*"):
        if path.suffix in ANNOTATIONS and path.is_file():
            path.write_bytes(content)
    for split in entry.splits:
        try:
            found = list(readers.read(raw, split, entry))
        except ValueError as error:
            assert any(suffix in str(error) for suffix in ANNOTATIONS)
        else:  # read line by line, or a folder for each question
            assert all(isinstance(item, Rejected) for item in found)
