"""Weights to safetensors shards with an index, as `save_pretrained` lays them out.

They are read tensor by tensor, and no more than one shard is in memory at a time.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ibtrain.defaults import SHARD_GIGABYTES
from ibtrain.pretrained.tensors import INDEX_NAME, SINGLE_NAME

SHARD_BYTES = int(SHARD_GIGABYTES * 1e9)


@dataclass(frozen=True)
class WrittenWeights:
    """What was written: number of files, parameters, bytes, and the dtype most parameters have."""

    shards: int
    parameters: int
    bytes: int
    dtype: torch.dtype


def write_weights(
    tensors: Iterable[tuple[str, Tensor]], directory: Path, shard_bytes: int = SHARD_BYTES
) -> WrittenWeights:
    """Writes named tensors: one model.safetensors, or shards and their index.

    Args:
        tensors: contiguous, on the CPU, read one by one.
        directory: where to; it exists.
        shard_bytes: a shard is closed before it grows larger; a larger tensor gets its own.

    Raises:
        ValueError: when there are no tensors, or `shard_bytes` is not above 0.
        OSError: when the file system cannot take it.
    """
    if shard_bytes < 1:
        raise ValueError(f"a shard of {shard_bytes} bytes holds nothing; give a size above 0")
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    held_bytes = total = 0
    numbers: Counter[torch.dtype] = Counter()

    def close() -> None:
        write_safetensors(held, directory / _unfinished(len(shards)))
        shards.append(list(held))
        held.clear()

    for name, tensor in tensors:
        if held and held_bytes + tensor.nbytes > shard_bytes:
            close()
            held_bytes = 0
        held[name] = tensor
        held_bytes += tensor.nbytes
        total += tensor.nbytes
        numbers[tensor.dtype] += tensor.numel()
    if not numbers:
        raise ValueError("there are no weights to write")
    close()
    _name_shards(directory, shards, total)
    return WrittenWeights(len(shards), numbers.total(), total, numbers.most_common(1)[0][0])


def write_safetensors(tensors: dict[str, Tensor], file: Path) -> None:
    """One safetensors file.

    Raises:
        OSError: when the file system cannot take it.
    """
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{file} cannot be written ({error})") from error


def _unfinished(number: int) -> str:
    return f"shard-{number}.safetensors"


def _name_shards(directory: Path, shards: list[list[str]], total: int) -> None:
    """Gives the files their names, which hold the number of all, and writes the index."""
    if len(shards) == 1:
        (directory / _unfinished(0)).rename(directory / SINGLE_NAME)
        return
    file_of = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (directory / _unfinished(number)).rename(directory / file)
        file_of.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total}, "weight_map": file_of}
    (directory / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
