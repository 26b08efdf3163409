"""Shard directories of hand-made records, written without annotations and readers."""

import hashlib
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import xxhash
import zstandard
from PIL import Image

from ibtrain.data.records import Answer, Record
from ibtrain.data.shards.records import (
    COLUMNS,
    COMPRESSION,
    HASHES,
    check_index,
    fingerprint,
    record_to_columns,
)


def jpeg(number: int, size: tuple[int, int] = (20, 12)) -> bytes:
    """A JPEG of one colour, another for every number."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (number * 37 % 256, number * 11 % 256, 40)).save(buffer, "JPEG")
    return buffer.getvalue()


def record(number: int, **changes: Any) -> Record:
    """A record whose every column says its number."""
    values: dict[str, Any] = {
        "dataset": "vqav2",
        "task": "image_question_answering",
        "id": str(number),
        "images": (jpeg(number),),
        "instructions": (f"What is {number}?", f"Antworte: wie heißt {number}?"),
        "answers": (Answer("net", 6.0), Answer("mesh", 3.0)),
        "form": "visual_question_answering",
        "plain": f"What is {number}?",
        "details": {"question_type": "what", "options": ["a", "b"]},
    }
    return Record(**(values | changes))


def write_shards(
    directory: Path,
    records: Iterable[Record],
    compression: str | None = COMPRESSION,
    shard_bytes: int = 1 << 26,
) -> Path:
    """Writes records as prepare does, without a card."""
    from streaming import MDSWriter

    with MDSWriter(
        out=str(directory),
        columns=COLUMNS,
        compression=compression,
        hashes=list(HASHES),
        size_limit=shard_bytes,
    ) as writer:
        for value in records:
            writer.write(record_to_columns(value))
    return directory


def change_json(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Changes a JSON file in place."""
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def put(*path: Any, value: object) -> Callable[[dict[str, Any]], None]:
    """An edit that sets the value at a path of keys."""

    def edit(content: dict[str, Any]) -> None:
        place: Any = content
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return edit


def hashes(data: bytes) -> dict[str, str]:
    """What an index says of data."""
    return {"sha1": hashlib.sha1(data).hexdigest(), "xxh64": xxhash.xxh64(data).hexdigest()}


def replace_stored(directory: Path, data: bytes, shard: int = 0) -> None:
    """Puts `data` in a shard's place and makes the index say so."""

    def edit(content: dict[str, Any]) -> None:
        entry = content["shards"][shard]
        place = entry["zip_data"] or entry["raw_data"]
        (directory / place["basename"]).write_bytes(data)
        place |= {"bytes": len(data), "hashes": hashes(data)}

    change_json(directory / "index.json", edit)


def replace_raw(directory: Path, raw: bytes, shard: int = 0) -> None:
    """Puts a shard of these raw bytes in a shard's place and makes the index say so."""

    def edit(content: dict[str, Any]) -> None:
        content["shards"][shard]["raw_data"] |= {"bytes": len(raw), "hashes": hashes(raw)}

    content = json.loads((directory / "index.json").read_text())
    compressed = content["shards"][shard]["zip_data"] is not None
    replace_stored(directory, zstandard.compress(raw) if compressed else raw, shard)
    change_json(directory / "index.json", edit)


def write_card(directory: Path) -> None:
    """The card that fits the index, as far as verify reads it; and an empty quarantine."""
    index = check_index(directory)
    card = {
        "report": {
            "dataset": "vqav2",
            "written": index.samples,
            "quarantined": 0,
            "shards": len(index.shards),
        },
        "bytes": {
            "stored": sum(shard.bytes for shard in index.shards),
            "raw": sum(shard.raw_bytes for shard in index.shards),
        },
        "fingerprint": fingerprint(index),
    }
    (directory / "card.json").write_text(json.dumps(card))
    (directory / "quarantine.jsonl").write_text("")
