"""Checkpoints: the trainable weights and Adam's moments, consolidated, independent of world size.

fp32 master weights and both moments are collected under their parameter names through DeepSpeed's
tensor-fragment API, which every rank calls in the same order, and written by rank 0 as safetensors.
Frozen weights are never written.
"""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ibtrain.distributed.ranks import alike_on_every_rank, on_rank_zero
from ibtrain.fencing import Incarnation
from ibtrain.files import read_json
from ibtrain.run_directory import (
    OPTIMIZER,
    STATE,
    TRAINABLE,
    RunDirectoryError,
    prune_steps,
    publish_step,
    take_run,
    verify_step,
)
from ibtrain.training.engine import Engine

logger = logging.getLogger(__name__)

MOMENTS = ("exp_avg", "exp_avg_sq")


def save_checkpoint(
    engine: Engine,
    run: Path,
    step: int,
    state: dict[str, Any],
    keep: int,
    incarnation: Incarnation | None = None,
) -> bool:
    """Writes RUN/checkpoints/step-…; called by every rank, of which rank 0 has the incarnation (by
    default the directory is taken).

    Returns whether it was written: a file system that cannot take it (a full disk) costs a
    warning, leaves the older checkpoints as they are, and the run goes on.

    Raises:
        RuntimeError: on every rank, when a later start has taken the run directory.
    """
    weights, moments = _collect(engine)

    def write_files(directory: Path) -> None:
        save_file(weights, directory / TRAINABLE)
        save_file(moments, directory / OPTIMIZER)
        (directory / STATE).write_text(json.dumps({"step": step, **state}, indent=2) + "\n")

    def publish() -> bool:
        held = incarnation or take_run(run)
        try:
            publish_step(run, step, write_files, held)
        except Exception as error:
            if not _is_io_error(error):
                raise
            logger.warning(
                "the checkpoint of step %d could not be written to %s (%s); training goes on, "
                "earlier checkpoints are untouched; free space there before the next one",
                step,
                run,
                error,
            )
            return False
        _prune(run, keep, held)
        return True

    return on_rank_zero(engine.ranks, publish)


def _prune(run: Path, keep: int, incarnation: Incarnation) -> None:
    try:
        prune_steps(run, keep, incarnation)
    except OSError as error:
        logger.warning(
            "older checkpoints in %s could not be removed (%s); training goes on, and the next "
            "checkpoint tries again",
            run,
            error,
        )


def _is_io_error(error: Exception) -> bool:
    from safetensors import SafetensorError

    return isinstance(error, OSError) or (
        isinstance(error, SafetensorError) and "os error" in str(error).lower()
    )


def _collect(engine: Engine) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Master weights and moments by name; complete on rank 0, empty on the others."""
    weights: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    for name, parameter in engine.model.trainable():
        full = {"": safe_get_full_fp32_param(parameter)}
        full |= {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
        assert all(tensor is not None and tensor.numel() for tensor in full.values()), name
        if engine.ranks.rank == 0:
            weights[name] = full.pop("").detach().to("cpu", copy=True).contiguous()
            for key, tensor in full.items():
                moments[f"{name}.{key}"] = tensor.detach().to("cpu", copy=True).contiguous()
    return weights, moments


def read_state(directory: Path) -> dict[str, Any]:
    """A verified step directory's state.json.

    Raises:
        RunDirectoryError: when any file of the step is missing or differs from its manifest.
    """
    verify_step(directory)
    return read_json(directory / STATE, "choose another step")


def load_checkpoint(engine: Engine, directory: Path) -> None:
    """Puts master weights and moments into the engine's partitions; called by every rank.

    The module's own (possibly bf16) weights are not touched: the engine was built from them.

    Raises:
        RunDirectoryError: when the checkpoint's tensors are not those that are trained.
    """
    with (
        safe_open(directory / TRAINABLE, framework="pt") as weights,
        safe_open(directory / OPTIMIZER, framework="pt") as moments,
    ):
        _check_trained(engine, weights.keys(), directory)
        for name, parameter in engine.model.trainable():
            _set(engine, parameter, weights.get_tensor(name), None)
            for key in MOMENTS:
                _set(engine, parameter, moments.get_tensor(f"{name}.{key}"), key)


@alike_on_every_rank()
def _check_trained(engine: Engine, saved: Iterable[str], directory: Path) -> None:
    differing = sorted({name for name, _ in engine.model.trainable()} ^ set(saved))
    if differing:
        raise RunDirectoryError(
            f"{directory} was written with other trained parts: {differing[0]!r} is in only one of "
            "the checkpoint and this recipe; set model.train_parts as they were"
        )


def _set(engine: Engine, parameter: nn.Parameter, value: Tensor, key: str | None) -> None:
    """Writes a full tensor into this rank's fragment of the master weight or a moment."""
    value = value.to(engine.device)
    if engine.stage != 3:
        if key is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, key)
        return
    # DeepSpeed's full setter for ZeRO-3 slices without the padding that partitions carry, and fails
    # where a size does not divide by the world; so the local one is used, with the padding added.
    ranks = engine.ranks
    partition = -(-value.numel() // ranks.world)
    padded = torch.zeros(partition * ranks.world, dtype=value.dtype, device=value.device)
    padded[: value.numel()] = value.flatten()
    local = padded.narrow(0, partition * ranks.rank, partition)
    if key is None:
        safe_set_local_fp32_param(parameter, local)
    else:
        safe_set_local_optimizer_state(parameter, local, key)
