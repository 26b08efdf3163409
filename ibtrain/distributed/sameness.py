"""Whether all nodes run the same code, which a run that is to mean anything needs."""

import hashlib
import importlib.metadata
import platform
import socket
from pathlib import Path
from typing import Any

import torch

from ibtrain.distributed.launchers import LaunchError, Ranks
from ibtrain.distributed.ranks import alike_on_every_rank

PACKAGE = Path(__file__).parents[1]
LIBRARIES = ("torch", "deepspeed", "transformers", "triton", "numpy", "safetensors")
_SUFFIXES = (".py", ".yaml", ".json")


def code_of(package: Path = PACKAGE) -> dict[str, str]:
    """Each file of the package and each library that counts, with a digest or a version."""
    files = sorted(path for path in package.rglob("*") if path.suffix in _SUFFIXES)
    found = {
        f"ibtrain/{path.relative_to(package)}": hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in files
    }
    found["Python"] = platform.python_version()
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def digest_of(code: dict[str, str]) -> str:
    """One digest of it all."""
    return hashlib.sha256(repr(sorted(code.items())).encode()).hexdigest()[:16]


def difference(first: dict[str, str], second: dict[str, str]) -> str:
    """The first of what differs, in words; nothing where all is equal."""
    for name in sorted(first.keys() | second.keys(), key=lambda name: ("/" in name, name)):
        one, other = first.get(name, "missing"), second.get(name, "missing")
        if one != other:
            return f"{name} differs" if "/" in name else f"{name} is {one} and {other}"
    return ""


def refuse_unequal_code(ranks: Ranks) -> None:
    """Called by every rank; one of each node reads the files.

    Raises:
        LaunchError: on every rank, naming two nodes and what differs.
    """
    if ranks.world == 1:
        return
    own = code_of() if ranks.local_rank == 0 else None
    told = _gathered(ranks, own and (socket.gethostname(), digest_of(own)))
    present = [(rank, *pair) for rank, pair in enumerate(told) if pair is not None]
    first, host, digest = present[0]
    for rank, other_host, other in present:
        if other != digest:
            codes = _gathered(ranks, own if ranks.rank in (first, rank) else None)
            with alike_on_every_rank():
                raise LaunchError(
                    f"{host} and {other_host} run different code: "
                    f"{difference(codes[first], codes[rank])}; install the same on every node, or "
                    "put the environment on a disk that they share"
                )


def _gathered(ranks: Ranks, own: Any) -> list[Any]:
    gathered: list[Any] = [None] * ranks.world
    torch.distributed.all_gather_object(gathered, own)
    return gathered
