"""Fixtures in the official layouts, read, rendered and written as `ibtrain data prepare` does it.

tests/data/fixtures/DATASET/LAYOUT/ holds hand-written annotation files as they lie in a raw
directory, and `images.txt`: the image files (one relative path a line) that are drawn before
reading.
"""

import json
import shutil
from pathlib import Path

from PIL import Image

from ibtrain.data.images import reencode
from ibtrain.data.instructions import templates
from ibtrain.data.preparation.prepare import prepare
from ibtrain.data.records import Record
from ibtrain.data.shards.records import read_records

FIXTURES = Path(__file__).parents[1] / "fixtures"


def raw_directory(fixture: str, directory: Path) -> Path:
    """Copies a fixture to `directory`/raw and draws its images, each of a colour of its own."""
    raw = directory / "raw"
    shutil.copytree(FIXTURES / fixture, raw, ignore=shutil.ignore_patterns("images.txt"))
    listed = FIXTURES / fixture / "images.txt"
    names = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    for number, name in enumerate(filter(None, names), start=1):
        path = raw / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 12), (number * 20 % 256, 30, 40)).save(path)
    return raw


def prepared(
    dataset: str, raw: Path, split: str, budget: float = 1.0
) -> tuple[list[Record], list[tuple[str, str]], dict[str, int]]:
    """Prepares a split beside `raw`: its records, (id, reason) of what was set aside, and drops by
    reason. In reasons, the raw directory is written RAW.
    """
    out = raw.parent / f"{Path(dataset).stem}-{split}"
    report = prepare(dataset, raw, out, split=split, budget=budget, progress=False)
    lines = (out / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    quarantine = []
    for line in map(json.loads, lines):
        reason = (
            line["reason"].replace(str(raw.absolute()), "RAW").replace(str(raw.parent), "RAW/..")
        )
        quarantine.append((line["id"], reason))
    return list(read_records(out)), quarantine, report.dropped


def jpeg(path: Path) -> bytes:
    """An image as it is stored in a shard."""
    return reencode(path)


def instructions(form: str, **slots: str) -> tuple[str, ...]:
    """Every shipped instruction of a form, filled in by plain replacement, in order."""
    texts = []
    for text in templates(form).templates:
        for slot, value in slots.items():
            text = text.replace("{" + slot + "}", value)  # noqa: PLW2901
        texts.append(text)
    return tuple(dict.fromkeys(texts))
