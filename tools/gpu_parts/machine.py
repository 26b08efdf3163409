"""What the card and the software are."""

import importlib.metadata
import os
import shutil

import torch

from bench_attention import hardware, versions
from gpu_parts.sheet import Job, Sheet, card

PACKAGES = (
    *("deepspeed", "transformers", "peft", "numpy", "safetensors", "tokenizers"),
    *("mosaicml-streaming", "pydantic", "omegaconf", "flash-attn", "nvidia-nccl-cu13"),
)


def run(job: Job, sheet: Sheet) -> None:
    """Versions, and the card as its driver says it."""
    with card(job, alone=False):
        sheet.facts["hardware"] = hardware(job.device)
        sheet.facts["versions"] = versions() | _installed()
        sheet.facts["host"] = {
            "cores": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "free_disk_bytes": shutil.disk_usage(job.scratch).free,
            "threads": torch.get_num_threads(),
        }


def _installed() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found
