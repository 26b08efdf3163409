"""Records and shards that several test files begin with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.data.shard_directories import change_json, record, write_card, write_shards

RECORDS = [record(number) for number in range(60)]
FIRST, SECOND, THIRD = (f"shard.0000{number}.mds.zstd" for number in range(3))
ZIP, RAW = ("shards", 0, "zip_data"), ("shards", 0, "raw_data")


def write(directory: Path, records: list[Any], **options: Any) -> Path:
    write_shards(directory, records, **options)
    write_card(directory)
    return directory


def change(directory: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    change_json(directory / "index.json", edit)


def flip(path: Path, position: int = 100) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
