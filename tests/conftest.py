"""What every test needs before anything else is imported: torchvision mended, nothing fetched."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import ibtrain.torchvision_mend  # isort: skip
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tiny import write_tiny_processor

assert ibtrain.torchvision_mend
torch.set_num_threads(1)


@pytest.fixture
def logger_as_it_was() -> Iterator[None]:
    """The command line sets up our logger, which is the process's own."""
    logger = logging.getLogger("ibtrain")
    before = logger.handlers, logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate = before[:2]
    logger.setLevel(before[2])


@pytest.fixture(scope="session")
def tiny_processor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with both tokenizers and the image processor; do not write into it."""
    return write_tiny_processor(tmp_path_factory.mktemp("tiny") / "processor")
