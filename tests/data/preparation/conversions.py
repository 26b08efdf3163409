"""Small conversions, in this process and in others, and what they leave."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ibtrain.data.preparation.prepare import PrepareReport, prepare

# The same as the command line does, with chunks small enough for a test.
CONVERT = """
import sys
from pathlib import Path
import ibtrain.data.preparation.survey as survey
survey.CHUNK_EXAMPLES = 8
from ibtrain.cli import main
if __name__ == "__main__":
    sys.exit(main(["data", "prepare", "llava_conversation", *sys.argv[1:]]))
"""


def conversations(
    raw: Path,
    count: int,
    bad: int = 0,
    images: int = 1,
    size: tuple[int, int] = (20, 12),
) -> Path:
    """A raw directory with `count` conversations, the first `bad` of which have no good image.

    The others take turns on `images` images. The last one is there twice.
    """
    (raw / "images").mkdir(parents=True)
    levels = np.random.default_rng(0).integers(0, 255, (images, size[1], size[0], 3), np.uint8)
    for number in range(images):
        Image.fromarray(levels[number]).save(raw / f"images/{number}.jpg")
    (raw / "images/broken.jpg").write_bytes(b"no image")
    rows = [
        {
            "id": str(index),
            "image": ("broken.jpg" if index % 2 else "gone.jpg")
            if index < bad
            else f"{index % images}.jpg",
            "conversations": [
                {"from": "human", "value": f"Question {index}"},
                {"from": "gpt", "value": "A" * (index + 1)},
            ],
        }
        for index in range(count)
    ]
    rows.append({**rows[-1]})
    (raw / "conversation_58k.json").write_text(json.dumps(rows))
    return raw


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def whole(raw: Path, out: Path, **options: Any) -> PrepareReport:
    return prepare("llava_conversation", raw, out, progress=False, **options)


def start(tmp_path: Path, raw: Path, out: Path, *options: str) -> "subprocess.Popen[str]":
    script = tmp_path / "convert.py"
    if not script.is_file():  # another process may be reading it
        script.write_text(CONVERT)
    return subprocess.Popen(
        [sys.executable, str(script), "--raw", str(raw), "--out", str(out), "--json", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"},
    )
