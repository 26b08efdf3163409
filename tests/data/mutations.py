"""Damage done to valid files, the same for the same seed: what a reader of them must survive."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import yaml

SCALARS: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**70),
    10**400,
    1.5,
    -0.0,
    1e308,
    "",
    " ",
    "\0",
    "a\0b",
    "\ud800",
    "\ufeff",
    "💥" * 300,
    "x" * 100_000,
    "NaN",
    "-1",
    "12345678901234567890",
    "{question}",
    "{0.__class__}",
    "%s%n",
    "<image>",
)
PATHS = (
    "../../secret.jpg",
    "../secret.jpg",
    "..",
    ".",
    "/",
    "/etc/passwd",
    "/dev/zero",
    "/dev/stdin",
    "~/.bashrc",
    "a/../../secret.jpg",
    "....//secret.jpg",
    "..\\..\\secret.jpg",
    "C:\\secret.jpg",
    "file:///etc/passwd",
    "http://127.0.0.1:1/a.jpg",
    "link/secret.jpg",
    "\0.jpg",
    "x" * 300 + ".jpg",
    "a/" * 600 + "x.jpg",
    "index.json",
)
RAW_VALUES = (
    b"1e999",
    b"-1E+400",
    b"NaN",
    b"Infinity",
    b"9" * 5000,
    b"0." + b"1" * 5000,
    b"-",
    b"01",
    b"'a'",
    b"undefined",
    b"// comment",
    b'"\\ud800"',
    b'"\\u0000"',
    b'"\xff\xfe"',
    b'"\xc0\xaf"',
    b"\x00",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"[" * 500 + b"]" * 500,
)


@dataclass(frozen=True)
class Mutation:
    """Damaged content, and in words what was done to it."""

    data: bytes
    done: str


def mutate(data: bytes, suffix: str, random: Random) -> Mutation:
    """One damage, or now and then up to three, to the content of a file with this suffix."""
    done = []
    for _ in range(random.choice((1, 1, 1, 1, 2, 3))):
        ways = [_bytes, _structure.get(suffix, _bytes), _structure.get(suffix, _bytes)]
        step = random.choice(ways)(data, random)
        data = step.data
        done.append(step.done)
    return Mutation(data, ", then ".join(done))


def _bytes(data: bytes, random: Random) -> Mutation:
    """Damage that knows nothing of what the bytes mean."""
    if not data:
        return Mutation(bytes(random.randrange(256) for _ in range(20)), "random bytes for nothing")
    begin = random.randrange(len(data))
    end = min(len(data), begin + random.choice((1, 2, 8, 100, 1000)))
    ways: tuple[Callable[[], tuple[bytes, str]], ...] = (
        lambda: (data[:begin], f"cut off at {begin}"),
        lambda: (data[begin:], f"the first {begin} bytes gone"),
        lambda: (
            data[:begin] + bytes([data[begin] ^ 1 << random.randrange(8)]) + data[begin + 1 :],
            f"a bit of byte {begin} flipped",
        ),
        lambda: (data[:begin] + data[end:], f"bytes {begin} to {end} gone"),
        lambda: (data[:begin] + data[begin:end] * 2 + data[end:], f"bytes {begin} to {end} twice"),
        lambda: (data[:begin] + random.randbytes(end - begin) + data[end:], f"noise at {begin}"),
        lambda: (data[:begin] + b"\0" * 5 + data[begin:], f"NUL at {begin}"),
        lambda: (data[:begin] + b"\xff\xfe\xc3" + data[begin:], f"no UTF-8 at {begin}"),
        lambda: (b"\xef\xbb\xbf" + data, "a byte order mark before it"),
        lambda: (data + data, "all of it twice"),
        lambda: (data.decode("utf-8", "replace").encode("utf-16"), "as UTF-16"),
        lambda: (b"", "emptied"),
        lambda: _number(data, random),
    )
    return Mutation(*random.choice(ways)())


def _number(data: bytes, random: Random) -> tuple[bytes, str]:
    """A value in the text replaced by something that JSON or YAML may or may not allow."""
    places = list(re.finditer(rb"-?\d+|\"[^\"]*\"|\btrue\b|\bnull\b", data))
    if not places:
        return data + b"\0", "NUL at the end"
    place = random.choice(places)
    value = random.choice(RAW_VALUES)
    changed = data[: place.start()] + value + data[place.end() :]
    return changed, f"{value[:20]!r} at {place.start()}"


def _json(data: bytes, random: Random) -> Mutation:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return _bytes(data, random)
    if random.random() < 0.1:
        return _repeated_key(data, random)
    content, done = _tree(content, random)
    return Mutation(json.dumps(content).encode(), done)


def _json_lines(data: bytes, random: Random) -> Mutation:
    lines = data.split(b"\n")
    number = random.randrange(len(lines))
    changed = _json(lines[number], random)
    lines[number] = changed.data
    return Mutation(b"\n".join(lines), f"line {number}: {changed.done}")


def _yaml(data: bytes, random: Random) -> Mutation:
    try:
        content = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError):
        return _bytes(data, random)
    if random.random() < 0.15:
        hostile = random.choice(
            (
                b"\nx: !!python/object/apply:os.system ['touch ran']\n",
                b"\nx: &x [*x]\n",
                b"\na: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n",
                b"\n<<: {name: other}\n",
                b"\n--- {}\n",
                b"\n\t- x\n",
                b"\nx: " + b"[" * 3000,
                b"\nx: !!binary aGVsbG8=\n",
                b"\nx: 2001-99-99\n",
                b"\nx: 1:2:3\n? [a, b]\n: c\n",
            )
        )
        return Mutation(data + hostile, f"{hostile[:30]!r} after it")
    content, done = _tree(content, random)
    try:
        return Mutation(yaml.safe_dump(content, allow_unicode=True).encode(), done)
    except (yaml.YAMLError, ValueError, RecursionError):
        return _bytes(data, random)


def _csv(data: bytes, random: Random) -> Mutation:
    rows = data.split(b"\n")
    number = random.randrange(len(rows))
    cells = rows[number].split(b",")
    cell = random.randrange(len(cells))
    value = random.choice(
        (
            b"",
            b'"',
            b'"a\n"',
            b"=cmd()",
            random.choice(PATHS).encode(),
            random.choice(RAW_VALUES)[:2000],
            str(random.choice(SCALARS)).encode("utf-8", "surrogatepass"),
            b"x" * 200_000,
            b"," * 50,
        )
    )
    cells[cell] = value
    rows[number] = b",".join(cells)
    return Mutation(b"\n".join(rows), f"row {number}, cell {cell} is {value[:20]!r}")


def _repeated_key(data: bytes, random: Random) -> Mutation:
    keys = list(re.finditer(rb"\"[^\"]*\":", data))
    if not keys:
        return _bytes(data, random)
    key = random.choice(keys)
    value = random.choice((b"null", b"7", b'"../../secret.jpg"', b"[]", b"{}"))
    changed = data[: key.start()] + key.group() + value + b"," + data[key.start() :]
    return Mutation(changed, f"{key.group()[:30]!r} twice at {key.start()}")


def _tree(content: Any, random: Random) -> tuple[Any, str]:
    """Damage to one value anywhere in plain data."""
    places = list(_places(content))
    if not places:
        return random.choice(SCALARS), "another value at the top"
    parent, key = random.choice(places)
    old = parent[key]
    way = random.randrange(9)
    if way == 0:
        del parent[key]
        return content, f"{key!r} gone"
    if way == 1 and isinstance(parent, dict):
        parent[random.choice(("", "\0", "id", "x" * 3000, "../../secret.jpg"))] = parent.pop(key)
        return content, f"{key!r} renamed"
    if way == 2 and isinstance(parent, list):
        parent.extend([old] * random.choice((1, 3, 300)))
        return content, f"entry {key} repeated"
    parent[key] = _other(old, way, random)
    return content, f"{key!r} is {str(parent[key])[:40]!r}"


def _other(old: Any, way: int, random: Random) -> Any:
    if way in (3, 4):
        return random.choice(PATHS)
    if way == 5:
        deep: Any = old
        for _ in range(random.choice((1, 2, 40, 300))):
            deep = [deep] if random.random() < 0.5 else {"a": deep}
        return deep
    if way == 6:
        return random.choice(([], {}, [None], {"": []}, [[]], [{}], [1, "a", None]))
    if way == 7 and isinstance(old, (str, int)):
        return random.choice((str(old), f" {old} ", [old], {"text": old}, f"{old}" * 50))
    return random.choice(SCALARS)


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """(list or object, key) of every value within plain data."""
    stack = [content]
    while stack:
        parent = stack.pop()
        if not isinstance(parent, (dict, list)):
            continue
        for key in list(parent) if isinstance(parent, dict) else range(len(parent)):
            yield parent, key
            stack.append(parent[key])


_structure: dict[str, Callable[[bytes, Random], Mutation]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".yaml": _yaml,
    ".csv": _csv,
    ".tsv": _csv,
    ".txt": _csv,
}
