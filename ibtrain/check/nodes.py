"""`ibtrain check` on the nodes of an allocation: each by itself, then what lies between them.

Every rank runs this; rank 0 has the table.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch

from ibtrain.check import facts
from ibtrain.check.verdicts import Finding
from ibtrain.config import Recipe
from ibtrain.distributed.launchers import Ranks
from ibtrain.distributed.sameness import code_of, difference

_T = TypeVar("_T")
_BYTES = 64 << 20  # of an all-reduce: large enough for a rate, small enough for gloo
_ROUNDS = 5
_MOST_SKEW = 1.0
_SLOW = 0.5
"""A node's GPU clock below this share of its largest is being held back."""


def check_nodes(
    ranks: Ranks, recipe: Recipe | None, check: Callable[[Recipe | None], list[Finding]]
) -> list[Finding]:
    """The findings of all nodes, on rank 0; nothing on the others.

    Args:
        ranks: this process among all, which have joined a group.
        recipe: whose data, base and run directory are looked at.
        check: what finds out about one machine.
    """
    host = socket.gethostname()
    first = ranks.local_rank == 0
    rows = _gathered(ranks, (host, check(recipe)) if first else None)
    found = [row for row in rows if row is not None]
    between = [
        _same_code(ranks, first, host),
        _clocks(ranks, first, host),
        _skew(ranks, host),
        _all_reduce(ranks),
        _shared_disk(ranks, recipe, host),
        *([] if recipe is None else [_same_base(ranks, recipe, first, host)]),
    ]
    if ranks.rank:
        return []
    names = [host for host, _ in found]
    nodes = Finding("nodes", "OK", f"{len(names)}, {ranks.world} ranks: {', '.join(names)}")
    return [nodes, *merged(found), *between]


def merged(found: Sequence[tuple[str, list[Finding]]]) -> Iterator[Finding]:
    """One row where all nodes are alike, else a row for each kind of node."""
    names = dict.fromkeys(finding.name for _, findings in found for finding in findings)
    for name in names:
        groups: dict[Finding | None, list[str]] = defaultdict(list)
        for host, findings in found:
            groups[next((one for one in findings if one.name == name), None)].append(host)
        # Free bytes differ from node to node; a row that is well is told of once.
        kinds = {finding.status for finding in groups if finding is not None}
        if kinds == {"OK"} and None not in groups:
            yield next(finding for finding in groups if finding is not None)
            continue
        for finding, hosts in groups.items():
            if finding is not None:
                where = "" if len(groups) == 1 else f" ({', '.join(hosts)})"
                yield Finding(name + where, finding.status, finding.found, finding.remedy)


def _same_code(ranks: Ranks, first: bool, host: str) -> Finding:
    told = _present(ranks, (host, code_of()) if first else None)
    for other, code in told[1:]:
        if differs := difference(told[0][1], code):
            remedy = "install the same on every node, or on a disk that they share"
            return Finding("code", "MISS", f"{told[0][0]} and {other}: {differs}", remedy)
    return Finding("code", "OK", f"the same files and versions on {len(told)} nodes")


def _clocks(ranks: Ranks, first: bool, host: str) -> Finding:
    """Whether a GPU is held back: by heat, a power limit, or an application clock."""
    told = _present(ranks, (host, _gpu_clocks()) if first else None)
    largest = [most for _, clocks in told for _, most in clocks]
    if not largest:
        return Finding("GPU clocks", "OK", "no GPU")
    for name, clocks in told:
        for number, (limit, most) in enumerate(clocks):
            if limit < _SLOW * most or most < max(largest):
                remedy = "nvidia-smi -q -d CLOCK,PERFORMANCE on that node says why; leave it out"
                shown = f"{name}, GPU {number}: {limit} of {max(largest)} MHz"
                return Finding("GPU clocks", "WARN", shown, remedy)
    return Finding("GPU clocks", "OK", f"up to {max(largest)} MHz on every GPU")


def _gpu_clocks() -> list[tuple[int, int]]:
    """MHz that each GPU may run at now, and at most."""
    query = "--query-gpu=clocks.applications.graphics,clocks.max.graphics"
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    pairs = [line.split(",") for line in ended.stdout.splitlines()]
    found = []
    for pair in pairs:
        if len(pair) == 2 and pair[1].strip().isdigit():
            most = int(pair[1])
            found.append((int(pair[0]) if pair[0].strip().isdigit() else most, most))
    return found


def _skew(ranks: Ranks, host: str) -> Finding:
    torch.distributed.barrier()
    told = _gathered(ranks, (time.time(), host))
    (early, first), (late, last) = min(told), max(told)
    shown = f"{late - early:.2f} s between {first} and {last}, exchange included"
    if late - early <= _MOST_SKEW:
        return Finding("clock skew", "OK", shown)
    remedy = "training does not mind, but logs mislead: have chrony or ntpd run on every node"
    return Finding("clock skew", "WARN", shown, remedy)


def _all_reduce(ranks: Ranks) -> Finding:
    """The rate at which all ranks together sum up a tensor."""
    backend = torch.distributed.get_backend()
    device = torch.device("cuda", ranks.local_rank) if backend == "nccl" else torch.device("cpu")
    tensor = torch.ones(_BYTES // 4, device=device)
    torch.distributed.all_reduce(tensor)
    torch.distributed.barrier()
    begin = time.monotonic()
    for _ in range(_ROUNDS):
        torch.distributed.all_reduce(tensor)
    if device.type == "cuda":
        torch.cuda.synchronize()
    torch.distributed.barrier()
    seconds = (time.monotonic() - begin) / _ROUNDS
    # What passes each rank's link, as nccl-tests count it.
    rate = 2 * (ranks.world - 1) / ranks.world * _BYTES / seconds
    wrong = float(tensor[0]) != float(ranks.world) ** (_ROUNDS + 1)
    shown = f"{rate / 1e9:.2f} GB/s ({backend}, {ranks.world} ranks, {_BYTES >> 20} MiB)"
    if wrong:
        remedy = "a network or a GPU that changes data: leave nodes out until it is found"
        return Finding("all-reduce", "MISS", f"{shown}, and the sum is wrong", remedy)
    return Finding("all-reduce", "OK", shown)


def _shared_disk(ranks: Ranks, recipe: Recipe | None, host: str) -> Finding:
    """Whether what rank 0 writes is seen by all where the run directory is to be."""
    directory = facts.existing(Path.cwd() if recipe is None else recipe.output)
    name = secrets.token_hex(8) if ranks.rank == 0 else None
    probe = directory / f".ibtrain-check-{_gathered(ranks, name)[0]}"
    if ranks.rank == 0:
        with suppress(OSError):
            probe.write_text(host)
    torch.distributed.barrier()
    told = _gathered(ranks, (host, probe.is_file()))
    if ranks.rank == 0:
        probe.unlink(missing_ok=True)
    blind = sorted({host for host, sees in told if not sees})
    if not blind:
        return Finding("shared disk", "OK", f"{directory} is seen by all")
    remedy = "name a directory on a disk that all nodes share and may write to: output=DIR"
    shown = f"what {told[0][0]} writes to {directory} is not seen by {', '.join(blind)}"
    return Finding("shared disk", "MISS", shown, remedy)


def _same_base(ranks: Ranks, recipe: Recipe, first: bool, host: str) -> Finding:
    told = _present(ranks, (host, _base_of(recipe)) if first else None)
    for name, base in told:
        if isinstance(base, str):
            remedy = "see the rows of the base"
            return Finding("base on all nodes", "MISS", f"{name}: {base}", remedy)
        if base != told[0][1]:
            shown = f"{told[0][0]} and {name} have different ones"
            remedy = "copy it again, or name one on a disk that they share"
            return Finding("base on all nodes", "MISS", shown, remedy)
    return Finding("base on all nodes", "OK", f"the same on {len(told)}")


def _base_of(recipe: Recipe) -> dict[str, str] | str:
    """Its fingerprint, or why there is none."""
    import ibtrain.torchvision_mend  # before transformers' own models are imported
    from ibtrain.pretrained.base import base_config, base_directory, record_base
    from ibtrain.tokenization import InstructionTokenizer

    assert ibtrain.torchvision_mend
    try:
        directory = base_directory(recipe.model)
        tokenizer = InstructionTokenizer.from_directory(directory)
        return record_base(recipe.model, base_config(recipe.model), tokenizer, recipe.seed)
    except (ValueError, OSError) as error:
        return facts.first_line(error)


def _present(ranks: Ranks, own: _T | None) -> list[_T]:
    return [one for one in _gathered(ranks, own) if one is not None]


def _gathered(ranks: Ranks, own: _T) -> list[_T]:
    gathered: list[Any] = [None] * ranks.world
    torch.distributed.all_gather_object(gathered, own)
    return gathered


def allocation_command(arguments: Sequence[str]) -> list[str] | None:
    """The srun that looks at all nodes of the allocation that this process is in, one rank for
    each GPU that the allocation has on a node; None where there is no srun.
    """
    if shutil.which("srun") is None:
        return None
    each = os.environ.get("SLURM_GPUS_ON_NODE", "")
    count = each if each.isdigit() and torch.cuda.is_available() else "1"
    nodes = os.environ.get("SLURM_JOB_NUM_NODES", "1")
    sizes = [f"--nodes={nodes}", f"--ntasks-per-node={count}", "--overlap"]
    return ["srun", *sizes, "--wait=60", sys.executable, "-m", "ibtrain", *arguments]
