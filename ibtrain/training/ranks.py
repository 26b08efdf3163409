"""Which process this is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Ranks:
    """This process among all, and among those of its node, whose ranks follow one another."""

    rank: int
    world: int
    local_rank: int
    local_world: int
