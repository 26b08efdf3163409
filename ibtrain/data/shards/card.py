"""The card of a shard directory: what was made, from what, and of which index it speaks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ibtrain.data.shards.index import ShardIndex, fingerprint, read_json

CARD = "card.json"
QUARANTINE = "quarantine.jsonl"
_MAXIMUM_CARD_BYTES = 1 << 24


def read_card(directory: Path) -> dict[str, Any]:
    """The card of a directory with the values that are needed here; ValueError naming it."""
    content = read_json(directory, CARD, _MAXIMUM_CARD_BYTES)
    path = directory / CARD
    if not isinstance(content, dict) or not isinstance(content.get("report"), dict):
        raise ValueError(f"{path}: no card of a shard directory: 'report' is missing")
    report = content["report"]
    if not isinstance(report.get("dataset"), str):
        raise ValueError(f"{path}: report.dataset must be a string")
    for key in ("written", "quarantined", "shards"):
        if type(report.get(key)) is not int:
            raise ValueError(f"{path}: report.{key} must be a whole number")
    if not isinstance(content.get("fingerprint"), str):
        raise ValueError(f"{path}: 'fingerprint' must be a string")
    return content


def card_differences(card: dict[str, Any], index: ShardIndex) -> Iterator[str]:
    """In what a card is not that of an index, a sentence each."""
    counts = {"written": index.samples, "shards": len(index.shards)}
    for key, count in counts.items():
        said = card["report"][key]
        if said != count:
            what = "records" if key == "written" else key
            yield f"speaks of {said} {what}, the index of {count}"
    sizes = {
        "stored": sum(shard.bytes for shard in index.shards),
        "raw": sum(shard.raw_bytes for shard in index.shards),
    }
    if card.get("bytes") != sizes:
        yield f"its sizes are {str(card.get('bytes'))[:100]}, those of the index are {sizes}"
    if card["fingerprint"] != fingerprint(index):
        yield "its fingerprint is that of another index"
