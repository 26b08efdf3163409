"""The shards that the mixture's tests draw from."""

from pathlib import Path

import pytest

from tests.data.mixture.small_mixture import SIZES, with_forms
from tests.data.small_shards import write_shards


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three datasets and one of two forms (20 and 10 records); do not write into it."""
    directory = tmp_path_factory.mktemp("mixture")
    for name, size in SIZES.items():
        write_shards(directory / name, name, size, per_shard=6, compressed=name != "small")
    write_shards(directory / "formed", "formed", 30, per_shard=4, make=with_forms)
    return directory
