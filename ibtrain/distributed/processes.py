"""Joining the process group that a launcher prepared, or making one of a single process."""

import atexit
import os
import socket
import time
from datetime import timedelta

import torch

from ibtrain.config import RecipeError
from ibtrain.distributed.ranks import Ranks

TIMEOUT = timedelta(minutes=30)
"""Of an exchange between ranks: one may be writing a checkpoint while the others wait."""


def start_processes() -> Ranks:
    """Joins the process group that the launcher prepared, or makes one of a single process.

    Raises:
        RecipeError: when several tasks were started without telling them who they are.
    """
    if "RANK" not in os.environ:
        if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
            raise RecipeError(
                f"{os.environ['SLURM_STEP_NUM_TASKS']} tasks were started by srun, but RANK and "
                "WORLD_SIZE are not set, so each would train alone on everything; export RANK, "
                "WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT in the task"
            )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        os.environ.update(alone, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    # The deepspeed launcher sets LOCAL_SIZE only; Streaming reads LOCAL_WORLD_SIZE.
    os.environ.setdefault("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "1"))
    ranks = Ranks(
        rank=int(os.environ["RANK"]),
        world=int(os.environ["WORLD_SIZE"]),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        local_world=int(os.environ["LOCAL_WORLD_SIZE"]),
    )
    if torch.cuda.is_available():
        torch.cuda.set_device(ranks.local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks.local_world))
    torch.distributed.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT
    )
    atexit.register(_leave_processes)
    return ranks


def _leave_processes() -> None:
    """Leaves gloo's threads the interpreter once more before it ends.

    They drop the tensors of their last exchange a moment after it, and need the interpreter for
    that. One that comes too late aborts the process ("terminate called without an active
    exception"): one finished run in ten counted as failed (torch 2.13).
    """
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        torch.distributed.destroy_process_group()
        time.sleep(0.2)
