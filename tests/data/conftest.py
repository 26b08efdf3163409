"""Small raw directories in the official layouts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ibtrain.data.preparation.prepare import prepare
from ibtrain.data.toy import write_toy


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("toys") / "toy"
    write_toy(directory, seed=3, train_images=60, test_images=20, num_query_tokens=4)
    return directory


@pytest.fixture(scope="session")
def prepared(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "gqa"
    prepare("gqa", toy / "gqa", out, progress=False)
    return out


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """COCO's folder with images 1 and 2 of train2014 and 7 of val2014."""
    for name in ("train2014/COCO_train2014_000000000001", "train2014/COCO_train2014_000000000002"):
        write_image(tmp_path / f"coco/images/{name}.jpg")
    write_image(tmp_path / "coco/images/val2014/COCO_val2014_000000000007.jpg")
    return tmp_path / "coco"


@pytest.fixture
def write_json() -> Callable[[Path, Any], None]:
    def write(path: Path, content: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")

    return write


def write_image(path: Path, size: tuple[int, int] = (20, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 30, 40)).save(path)
