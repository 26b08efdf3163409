"""Joining the process group that a launcher prepared, or making one of a single process."""

import atexit
import os
import time
from datetime import timedelta

import torch

from ibtrain.distributed.launchers import LaunchError, find_start
from ibtrain.distributed.ranks import Ranks

TIMEOUT = timedelta(minutes=30)
"""Of an exchange between ranks: one may be writing a checkpoint while the others wait."""


def start_processes() -> Ranks:
    """Joins the process group that the launcher prepared, or makes one of a single process.

    Raises:
        LaunchError: when the launcher's variables do not say which process this is; a ValueError.
    """
    start = find_start()
    ranks = start.ranks
    # torch.distributed, DeepSpeed and Streaming read them there.
    os.environ.update(start.variables)
    _refuse_missing_device(ranks)
    if torch.cuda.is_available():
        torch.cuda.set_device(ranks.local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks.local_world))
    try:
        torch.distributed.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT
        )
    except torch.distributed.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise LaunchError(
            f"MASTER_PORT {start.port} on {start.address} is taken by another process; name a free "
            "one: export MASTER_PORT=PORT, alike for every process (deepspeed --master_port PORT)"
        ) from error
    atexit.register(_leave_processes)
    return ranks


def _refuse_missing_device(ranks: Ranks) -> None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if 0 < count <= ranks.local_rank:
        raise LaunchError(
            f"LOCAL_RANK is {ranks.local_rank}, but this process sees {count} GPUs; start as many "
            "processes per node as there are, and let each see all of them"
        )


def _leave_processes() -> None:
    """Leaves gloo's threads the interpreter once more before it ends.

    They drop the tensors of their last exchange a moment after it, and need the interpreter for
    that. One that comes too late aborts the process ("terminate called without an active
    exception"): one finished run in ten counted as failed (torch 2.13).
    """
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        torch.distributed.destroy_process_group()
        time.sleep(0.2)
