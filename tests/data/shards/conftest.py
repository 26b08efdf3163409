import shutil
from pathlib import Path

import pytest

from tests.data.shards.samples import RECORDS, write


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty records in four compressed shards, with their card."""
    return write(tmp_path_factory.mktemp("shards") / "vqav2", RECORDS, shard_bytes=16_000)


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "vqav2"))
