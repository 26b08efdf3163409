"""Which sample comes at which position of which epoch: the order of a mixture, as numbers alone.

A global order is made first, and nodes, ranks and workers only take their positions of it, so it
does not depend on how many there are. What it promises:

- Every stratum (a dataset, or one form of its records) gets its draws of an epoch exactly, spread
  evenly: in the first t positions of an epoch it has t * share of them, to within
  1 + strata * share.
- A stratum is gone through in passes. A pass holds every sample once, and the next begins when the
  last has ended, in this epoch or a later one: no sample returns before all others were seen.
- A global batch is cut into `canonical_nodes` equal runs of positions. Within a pass each of them
  goes through shards of its own, one after the other in random order, shuffled within WINDOW
  samples. So a node of a cluster reads its own shards, a few at a time.

Random numbers are hashes of what they are for (SplitMix64), and every sort is of distinct keys, so
the order is the same on every machine and with every version of numpy.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

ORDER_VERSION = 1
"""Raise it when the same arguments give another order."""
MOST_NODES = 64
WINDOW = 1 << 15
SMALL = 1 << 12
"""A stratum of at most so many samples is shuffled as a whole and read by all nodes."""

DrawUnit = Literal["sample", "batch"]
_Integers = npt.NDArray[np.int64]
_Hashes = npt.NDArray[np.uint64]
_POSITIONS = np.arange(WINDOW, dtype=np.uint64)
_LOW = np.uint64(WINDOW - 1)


@dataclass(frozen=True)
class OrderStratum:
    """A stratum of the mixture: samples that are drawn alike.

    Args:
        name: distinguishes it from all others; random numbers depend on it.
        shard_samples: how many of its samples lie in each shard, [shards].
        draws: samples to draw in an epoch.
    """

    name: str
    shard_samples: _Integers
    draws: int

    @property
    def size(self) -> int:
        """Its samples in all shards."""
        return int(self.shard_samples.sum())


@dataclass(frozen=True)
class EpochOrder:
    """Positions of an epoch in order. Each array is [steps, positions].

    `stratum` is an index in the list of strata, `number` a sample of the stratum (0 is the first
    sample in the first shard), `repeat` how many passes of the stratum began before in this epoch:
    two draws of one sample in an epoch differ in it.
    """

    stratum: npt.NDArray[np.uint16]
    number: npt.NDArray[np.uint32]
    repeat: npt.NDArray[np.uint32]

    def share(self, rank: int, world: int) -> "EpochOrder":
        """A rank's positions: the global batch is cut into `world` equal runs."""
        size = self.stratum.shape[1] // world
        own = slice(rank * size, (rank + 1) * size)
        return EpochOrder(
            self.stratum[:, own].copy(), self.number[:, own].copy(), self.repeat[:, own].copy()
        )


def canonical_nodes(global_batch: int) -> int:
    """The most nodes that can have shards of their own: a power of two that divides the batch."""
    return math.gcd(MOST_NODES, global_batch)


def largest_remainder(total: int, weights: Sequence[float], names: Sequence[str]) -> list[int]:
    """Whole numbers in proportion to `weights` that add up to `total`, each within 1 of its due.

    Of equal remainders the first name comes first, so the list's order has no influence.
    """
    whole = math.fsum(weights)
    asked = [total * weight / whole for weight in weights]
    counts = [math.floor(number) for number in asked]
    by_remainder = sorted(
        range(len(asked)),
        key=lambda position: (counts[position] - asked[position], names[position]),
    )
    for position in by_remainder[: total - sum(counts)]:
        counts[position] += 1
    return counts


def epoch_order(
    strata: Sequence[OrderStratum],
    epoch: int,
    *,
    seed: int,
    global_batch: int,
    draw: DrawUnit = "sample",
) -> EpochOrder:
    """The order of one epoch (see the top of the file).

    Args:
        strata: their draws add up to a whole number of global batches; with `draw` "batch" each of
            them is one.
        epoch: from 0.
        seed: of the run.
        global_batch: samples of a step over all ranks.
        draw: whether positions or whole global batches are drawn from the strata.
    """
    total = sum(stratum.draws for stratum in strata)
    assert total > 0 and total % global_batch == 0
    if draw == "batch":
        assert all(stratum.draws % global_batch == 0 for stratum in strata)
        stratum_E = np.repeat(_merged(strata, global_batch, epoch, seed), global_batch)
    else:
        stratum_E = _merged(strata, 1, epoch, seed)
    number_E = np.empty(total, np.uint32)
    repeat_E = np.empty(total, np.uint32)
    run = global_batch // canonical_nodes(global_batch)
    by_stratum = np.argsort(stratum_E, kind="stable")
    ends = np.cumsum([stratum.draws for stratum in strata]).tolist()
    for stratum, end in zip(strata, ends, strict=True):
        positions = by_stratum[end - stratum.draws : end]
        first = epoch * stratum.draws
        if stratum.draws == 0:
            continue
        if stratum.size <= SMALL:
            number_E[positions] = _small_draws(stratum, first, seed)
        else:
            node_of_draw = (positions % global_batch // run).astype(np.uint8)
            number_E[positions] = _large_draws(stratum, first, seed, node_of_draw)
        repeat_E[positions] = _repeats(stratum, first)
    shape = (total // global_batch, global_batch)
    return EpochOrder(stratum_E.reshape(shape), number_E.reshape(shape), repeat_E.reshape(shape))


def _key(*words: object) -> np.uint64:
    """A seed of 64 bits for one purpose."""
    text = "/".join(map(str, words)).encode()
    return np.uint64(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"))


def _random(key: np.uint64, begin: int, count: int) -> _Hashes:
    """Numbers begin to begin + count of the generator `key` (SplitMix64; Steele, Lea and Flood,
    2014); `count` is at most WINDOW.
    """
    mixed = _POSITIONS[:count] + np.uint64(begin + 1)
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    mixed += key
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def replacement(seed: int, epoch: int, position: int, attempt: int, size: int) -> int:
    """A sample of a stratum of `size` samples in the stead of one that cannot be read."""
    return int(_key(seed, "replacement", epoch, position, attempt)) % size


def _spans(count: int, step: int) -> Iterator[slice]:
    """[0, count) in pieces of `step`; small arrays are reused, large ones are mapped anew."""
    for begin in range(0, count, step):
        yield slice(begin, min(begin + step, count))


def _merged(
    strata: Sequence[OrderStratum], unit: int, epoch: int, seed: int
) -> npt.NDArray[np.uint16]:
    """The stratum of every position: draw j of d stands at a random time within [j, j + 1) / d."""
    draws = [stratum.draws // unit for stratum in strata]
    total = sum(draws)
    id_bits = total.bit_length()
    resolution = 2.0 ** (62 - id_bits)
    keys = np.empty(total, np.uint64)  # time, then id, so that no two are equal
    stratum_of_id = np.empty(total, np.uint16)
    begin = 0
    for index in sorted(range(len(strata)), key=lambda index: strata[index].name):
        count = draws[index]
        key = _key(seed, "merge", epoch, strata[index].name)
        for span in _spans(count, WINDOW):
            draw = _POSITIONS[: span.stop - span.start] + np.uint64(span.start)
            within = _random(key, span.start, len(draw)) >> np.uint64(11)
            time = (draw + within * 2.0**-53) / count
            packed = (time * resolution).astype(np.uint64) << np.uint64(id_bits)
            keys[begin + span.start : begin + span.stop] = packed | draw + np.uint64(begin)
        stratum_of_id[begin : begin + count] = index
        begin += count
    keys.sort()
    merged = np.empty(total, np.uint16)
    for span in _spans(total, WINDOW):
        merged[span] = stratum_of_id[keys[span] & np.uint64((1 << id_bits) - 1)]
    return merged


def _repeats(stratum: OrderStratum, first: int) -> npt.NDArray[np.uint32]:
    """For each draw of an epoch how many passes began in it before the draw's own."""
    begun = first % stratum.size
    passes = (begun + stratum.draws - 1) // stratum.size + 1
    counts = np.full(passes, stratum.size)
    counts[0] -= begun
    counts[-1] -= passes * stratum.size - begun - stratum.draws
    return np.repeat(np.arange(passes, dtype=np.uint32), counts)


def _shuffled(key: np.uint64, begin: int, count: int) -> _Integers:
    """A permutation of `count` positions, at most WINDOW."""
    keys = _random(key, begin, count) & ~_LOW | _POSITIONS[:count]
    keys.sort()
    return (keys & _LOW).astype(np.int64)


def _small_draws(stratum: OrderStratum, first: int, seed: int) -> _Integers:
    """Draws of a small stratum from draw `first` of its life on: every pass shuffled as a whole."""
    key = _key(seed, "small", stratum.name)
    begin, end = first // stratum.size, (first + stratum.draws - 1) // stratum.size + 1
    passes = np.empty((end - begin, stratum.size), np.int64)
    for span in _spans(end - begin, WINDOW // stratum.size):
        rows = span.stop - span.start
        keys = _random(key, (begin + span.start) * stratum.size, rows * stratum.size)
        keys = keys.reshape(rows, stratum.size) & ~_LOW | _POSITIONS[: stratum.size]
        keys.sort(axis=1)
        passes[span] = keys & _LOW
    return passes.ravel()[first - begin * stratum.size :][: stratum.draws]


def _large_draws(
    stratum: OrderStratum, first: int, seed: int, node_of_draw: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint32]:
    """Draws of a stratum from draw `first` of its life on: each node has a run of its own of each
    pass.
    """
    numbers = np.empty(stratum.draws, np.uint32)
    done = 0
    while done < stratum.draws:
        which, position = divmod(first + done, stratum.size)
        count = min(stratum.size - position, stratum.draws - done)
        one_pass = _Pass(stratum, _key(seed, "pass", stratum.name, which))
        own = numbers[done : done + count]
        nodes = node_of_draw[done : done + count]
        by_node = np.argsort(nodes, kind="stable")
        begin = 0
        for size in np.bincount(nodes).tolist():
            for span in _spans(size, WINDOW):
                target = by_node[begin + span.start : begin + span.stop]
                own[target] = one_pass.window(position + begin + span.start, len(target))
            begin += size
        done += count
    return numbers


class _Pass:
    """Every sample of a large stratum once: shard after shard, the shards in random order."""

    def __init__(self, stratum: OrderStratum, key: np.uint64) -> None:
        shards = len(stratum.shard_samples)
        random = np.concatenate(
            [_random(key, span.start, span.stop - span.start) for span in _spans(shards, WINDOW)]
        )
        self._key = key ^ np.uint64(1)
        self._order = np.argsort(random, kind="stable")
        self._sizes = stratum.shard_samples[self._order]
        self._ends = np.cumsum(self._sizes)
        # what is added to a position of the pass to give the sample's number
        begins = np.cumsum(stratum.shard_samples) - stratum.shard_samples
        self._shifts = begins[self._order] - (self._ends - self._sizes)

    def window(self, begin: int, count: int) -> _Integers:
        """Samples [begin, begin + count) of the pass, shuffled."""
        low = int(np.searchsorted(self._ends, begin, "right"))
        high = int(np.searchsorted(self._ends, begin + count, "left")) + 1
        sizes = self._sizes[low:high].copy()
        sizes[0] = self._ends[low] - begin
        sizes[-1] -= self._ends[high - 1] - begin - count
        positions = _shuffled(self._key, begin, count)
        numbers: _Integers = np.repeat(self._shifts[low:high], sizes)
        numbers += np.arange(begin, begin + count)
        return numbers[positions]
