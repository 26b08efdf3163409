"""What the card and the software are."""

import importlib.metadata
import os
import shutil
import time

import torch

from attention_bench.machine import hardware, versions
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
        sheet.facts["launch_microseconds"] = _launch_microseconds(job)


def _launch_microseconds(job: Job, launches: int = 4000) -> float:
    """What the host needs to start a kernel that does next to nothing, by torch: the pace that
    short steps cannot outrun.
    """
    tensor = torch.zeros(16, device=job.device)
    for count in (100, launches):
        begun = time.perf_counter()
        for _ in range(count):
            tensor.add_(1.0)
        if tensor.is_cuda:
            torch.cuda.synchronize()
    return 1e6 * (time.perf_counter() - begun) / launches


def _installed() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found
