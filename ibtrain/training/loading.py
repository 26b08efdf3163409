"""Values into a model that is already laid out on its ranks, tensor by tensor.

Under ZeRO-3 each rank reads the slice that is its own: files are mapped, so that only the pages of
the slice are read, no byte is read by two ranks, and no rank ever holds more than one whole tensor.
Where every rank holds the whole model (ZeRO-1 and 2), the first rank of each node reads and hands
on to the others of its node.
"""

import ctypes
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ibtrain.distributed.ranks import Ranks
from ibtrain.model.instructblip import InstructBlip
from ibtrain.pretrained.tensors import TensorSource

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's mallopt(3)


@contextmanager
def memory_given_back() -> Iterator[None]:
    """While it lasts, every freed tensor's memory goes back to the system at once.

    Each parameter is built whole beside its slice. glibc learns from the first large one that is
    freed to keep its like in the heap, where slices that stay then hold the holes between them:
    measured, a rank kept almost as much again as its partition. Does nothing with another C
    library.
    """
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)
    if adjust is None:
        yield
        return
    adjust(_MMAP_THRESHOLD, 64 * 1024)
    try:
        yield
    finally:
        # What glibc would have arrived at by itself: training asks for the same sizes every step.
        adjust(_MMAP_THRESHOLD, 32 * 1024**2)
        adjust(_TRIM_THRESHOLD, 64 * 1024**2)


def fill_partitions(
    model: InstructBlip,
    sources: Mapping[str, TensorSource],
    ranks: Ranks,
    gather: Callable[[nn.Parameter], AbstractContextManager[Any]],
) -> None:
    """Fills a model that ZeRO-3 has partitioned.

    Args:
        model: laid out under `deepspeed.zero.Init`; each parameter's slice is its `ds_tensor`.
        sources: for each parameter where its value is read from.
        ranks: this process.
        gather: brings a parameter together; rank 0's values hold afterwards. For partitions that
            are laid out otherwise (a second one within the node, on a disk, quantised).
    """
    for name, parameter in model.weights():
        own = _plain_partition(parameter)
        if own is not None:
            _copy_slice(sources[name].get(name), own, ranks.rank)
            continue
        with gather(parameter), torch.no_grad():
            if ranks.rank == 0:
                parameter.copy_(sources[name].get(name))


def _plain_partition(parameter: Any) -> Tensor | None:
    """This rank's slice, if it is one flat tensor of the parameter's own dtype in memory."""
    own: Tensor | None = parameter.ds_tensor
    plain = (
        own is not None
        and own.numel() > 0
        and own.is_floating_point()
        and not hasattr(own, "ds_quant_scale")
        and parameter.ds_secondary_tensor is None
        and parameter.ds_process_group.size() == torch.distributed.get_world_size()
    )
    return own if plain else None


def _copy_slice(value: Tensor, own: Tensor, rank: int) -> None:
    """The rank's slice of the flattened value; the last is padded with zeros."""
    begin = min(rank * own.numel(), value.numel())
    end = min(begin + own.numel(), value.numel())
    with torch.no_grad():
        own[: end - begin].copy_(value.flatten()[begin:end])
        own[end - begin :].zero_()


def fill_replicas(model: InstructBlip, sources: Mapping[str, TensorSource], ranks: Ranks) -> None:
    """Fills a model that every rank holds whole: one rank of each node reads."""
    group = _node_group(ranks)
    reader = ranks.rank - ranks.local_rank
    for name, parameter in model.weights():
        with torch.no_grad():
            if ranks.local_rank == 0:
                parameter.copy_(sources[name].get(name))
            if ranks.local_world > 1:
                torch.distributed.broadcast(parameter.data, src=reader, group=group)


def _node_group(ranks: Ranks) -> Any:
    """The processes of this node; every rank makes every node's group, in the same order."""
    if ranks.local_world == ranks.world:
        return None
    firsts: list[int] = [0] * ranks.world
    torch.distributed.all_gather_object(firsts, ranks.rank - ranks.local_rank)
    own = None
    for first in sorted(set(firsts)):
        members = [rank for rank, of in enumerate(firsts) if of == first]
        group = torch.distributed.new_group(members)
        if ranks.rank in members:
            own = group
    return own
