"""What every test needs before anything else is imported: torchvision mended, nothing fetched."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import ibtrain.torchvision_mend  # isort: skip
from pathlib import Path

import pytest
import torch

from tests.tiny import write_tiny_processor

assert ibtrain.torchvision_mend
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_processor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with both tokenizers and the image processor; do not write into it."""
    return write_tiny_processor(tmp_path_factory.mktemp("tiny") / "processor")
