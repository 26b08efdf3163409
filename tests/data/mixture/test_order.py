"""What order.py promises, held against plain counting."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ibtrain.data.mixture import order
from ibtrain.data.mixture.order import (
    EpochOrder,
    OrderStratum,
    canonical_nodes,
    epoch_order,
    largest_remainder,
    replacement,
)


def stratum(name: str, sizes: list[int], draws: int) -> OrderStratum:
    return OrderStratum(name, np.array(sizes, np.int64), draws)


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[list[OrderStratum], int]:
    """Parts of 1 sample to some thousands, drawn less than once to many times, and a batch."""
    batch = draw(st.sampled_from([1, 2, 3, 8, 12, 64, 96]))
    count = draw(st.integers(1, 5))
    strata = []
    for index in range(count):
        shards = draw(st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(sum))
        steps = draw(st.integers(1, 6))
        strata.append(stratum(f"stratum {index}", shards, steps * batch))
    # what is left over goes from one stratum to another, so that single draws are no whole batches
    if count > 1:
        moved = draw(st.integers(0, strata[0].draws))
        strata[0] = stratum("stratum 0", strata[0].shard_samples.tolist(), strata[0].draws - moved)
        strata[1] = stratum("stratum 1", strata[1].shard_samples.tolist(), strata[1].draws + moved)
    return strata, batch


@pytest.fixture(autouse=True, params=["small", "large"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of shuffling, whatever the size: as a whole, and shard by shard in windows of 8."""
    if request.param == "large":
        monkeypatch.setattr(order, "SMALL", 0)
        monkeypatch.setattr(order, "WINDOW", 8)
    return request.param


def several(
    strata: list[OrderStratum], batch: int, epochs: int = 3, **more: object
) -> list[EpochOrder]:
    return [
        epoch_order(strata, epoch, seed=7, global_batch=batch, **more) for epoch in range(epochs)
    ]


def life(orders: list[EpochOrder], index: int) -> list[int]:
    """The samples of a stratum in the order in which they come, over all epochs."""
    return [
        number
        for epoch in orders
        for number in epoch.number.ravel()[epoch.stratum.ravel() == index].tolist()
    ]


@settings(max_examples=80, deadline=None)
@given(mixtures())
def test_every_stratum_gets_its_draws(mixture: tuple[list[OrderStratum], int]) -> None:
    strata, batch = mixture
    for epoch in several(strata, batch):
        assert epoch.stratum.shape[1] == batch
        drawn = Counter(epoch.stratum.ravel().tolist())
        assert [drawn[index] for index in range(len(strata))] == [
            stratum.draws for stratum in strata
        ]


@settings(max_examples=80, deadline=None)
@given(mixtures())
def test_no_sample_returns_before_all_others_were_seen(
    mixture: tuple[list[OrderStratum], int],
) -> None:
    strata, batch = mixture
    orders = several(strata, batch)
    for index, one in enumerate(strata):
        seen = life(orders, index)
        for begin in range(0, len(seen), one.size):
            one_pass = seen[begin : begin + one.size]
            assert len(set(one_pass)) == len(one_pass)
            assert set(one_pass) <= set(range(one.size))


@settings(max_examples=80, deadline=None)
@given(mixtures())
def test_shares_hold_in_every_prefix(mixture: tuple[list[OrderStratum], int]) -> None:
    strata, batch = mixture
    total = sum(stratum.draws for stratum in strata)
    for epoch in several(strata, batch, 2):
        positions = np.arange(1, total + 1)
        for index, one in enumerate(strata):
            so_far = np.cumsum(epoch.stratum.ravel() == index)
            share = one.draws / total
            assert np.abs(so_far - positions * share).max() < 1 + len(strata) * share + 1e-9


@settings(max_examples=60, deadline=None)
@given(mixtures())
def test_two_draws_of_a_sample_differ_in_repeat(mixture: tuple[list[OrderStratum], int]) -> None:
    strata, batch = mixture
    for epoch in several(strata, batch):
        draws = list(
            zip(epoch.stratum.ravel(), epoch.number.ravel(), epoch.repeat.ravel(), strict=True)
        )
        assert len(set(draws)) == len(draws)
        for index, one in enumerate(strata):
            repeats = epoch.repeat.ravel()[epoch.stratum.ravel() == index]
            assert (np.diff(repeats.astype(int)) >= 0).all()
            assert repeats.size == 0 or repeats.max() <= one.draws // one.size + 1


@settings(max_examples=60, deadline=None)
@given(mixtures(), st.integers(0, 5))
def test_shares_of_ranks_are_the_order_cut(
    mixture: tuple[list[OrderStratum], int], epoch: int
) -> None:
    strata, batch = mixture
    whole = epoch_order(strata, epoch, seed=3, global_batch=batch)
    for world in (world for world in (1, 2, 3, 4, 8) if batch % world == 0):
        shares = [whole.share(rank, world) for rank in range(world)]
        for column in ("stratum", "number", "repeat"):
            joined = np.concatenate([getattr(share, column) for share in shares], axis=1)
            assert (joined == getattr(whole, column)).all()


@settings(max_examples=40, deadline=None)
@given(mixtures())
def test_batches_of_one_stratum(mixture: tuple[list[OrderStratum], int]) -> None:
    strata, batch = mixture
    strata = [
        stratum(one.name, one.shard_samples.tolist(), (one.draws // batch + 1) * batch)
        for one in strata
    ]
    for epoch in several(strata, batch, 2, draw="batch"):
        assert (epoch.stratum == epoch.stratum[:, :1]).all()
        drawn = Counter(epoch.stratum.ravel().tolist())
        assert [drawn[index] for index in range(len(strata))] == [one.draws for one in strata]


def test_the_order_is_a_function_of_its_arguments() -> None:
    strata = [stratum("a", [30, 20], 40), stratum("b", [7], 24)]

    def text(epoch: int = 0, seed: int = 1, batch: int = 8, of: list | None = None) -> str:
        found = epoch_order(of or strata, epoch, seed=seed, global_batch=batch)
        return repr((found.stratum.tolist(), found.number.tolist()))

    assert text() == text()
    assert len({text(), text(epoch=1), text(seed=2), text(batch=16)}) == 4
    renamed = [stratum("c", [30, 20], 40), strata[1]]
    assert text(of=renamed) != text()


def test_the_order_of_the_list_has_no_influence() -> None:
    strata = [stratum("a", [30, 20], 40), stratum("b", [7], 25), stratum("c", [7], 31)]
    one = epoch_order(strata, 2, seed=1, global_batch=8)
    other = epoch_order(strata[::-1], 2, seed=1, global_batch=8)
    assert (one.stratum == 2 - other.stratum).all()
    assert (one.number == other.number).all()


def test_it_is_the_same_in_every_version(path: str) -> None:
    """Written down once: a run of yesterday goes on today. Change ORDER_VERSION with it."""
    assert order.ORDER_VERSION == 1
    strata = [stratum("a", [4, 3, 9], 20), stratum("b", [2], 4)]
    found = epoch_order(strata, 1, seed=5, global_batch=8)
    numbers = [" ".join(map(str, row.tolist())) for row in found.number]
    assert ["".join(map(str, row.tolist())) for row in found.stratum] == STRATA
    assert numbers == NUMBERS[path]


STRATA = ["00100000", "00010100", "00000001"]
NUMBERS = {
    "small": ["7 2 1 3 4 1 11 5", "0 8 9 0 13 0 6 3", "8 13 6 14 2 11 12 1"],
    "large": ["7 9 0 12 14 15 4 6", "8 10 11 1 13 0 5 7", "0 1 2 3 4 5 6 1"],
}


@pytest.mark.parametrize("batch", [64, 128, 24])
def test_a_node_reads_few_shards_of_its_own(batch: int) -> None:
    """Each canonical node goes through a run of a pass: its shards are a contiguous piece of the
    pass, and within a window it has few of them open."""
    nodes = canonical_nodes(batch)
    shards, per_shard = 400, 50
    size = shards * per_shard
    one = stratum("a", [per_shard] * shards, size // batch * batch)
    found = epoch_order([one], 0, seed=0, global_batch=batch)
    shards_of = found.number // per_shard
    run = batch // nodes
    owners: dict[int, set[int]] = {}
    for node in range(nodes):
        own = shards_of[:, node * run : (node + 1) * run].ravel()
        for shard in set(own.tolist()):
            owners.setdefault(shard, set()).add(node)
        # the samples of the node, divided by a shard, and one more at either end
        assert len(set(own.tolist())) <= one.draws / nodes / per_shard + 2
        window = order.WINDOW
        for begin in range(0, len(own), window):
            opened = set(own[begin : begin + window].tolist())
            assert len(opened) <= window // per_shard + 2
    assert max(map(len, owners.values())) <= 2 + per_shard * nodes // size


def test_windows_shuffle() -> None:
    """Neighbours in a shard do not stay neighbours, and the shards are not in stored order."""
    one = stratum("a", [1000] * 10, 10_000)
    numbers = epoch_order([one], 0, seed=0, global_batch=1).number.ravel().astype(int)
    assert (np.abs(np.diff(numbers)) == 1).mean() < 0.3
    shards = [shard for shard, _ in Counter(numbers // 1000).most_common()]
    assert shards != sorted(shards) or (numbers // 1000 != np.sort(numbers // 1000)).any()


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_one_sample_many_times(epoch: int) -> None:
    strata = [stratum("one", [0, 1, 0], 100), stratum("two", [1, 1], 28)]
    found = epoch_order(strata, epoch, seed=0, global_batch=64)
    own = found.stratum == 0
    assert (found.number[own] == 0).all()
    assert sorted(found.repeat[own].tolist()) == list(range(100))


def test_a_part_without_draws() -> None:
    strata = [stratum("a", [5], 8), stratum("b", [5], 0)]
    assert (epoch_order(strata, 3, seed=0, global_batch=4).stratum == 0).all()


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 10_000_000),
    st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=30),
)
def test_largest_remainder(total: int, weights: list[float]) -> None:
    names = [f"n{index:02}" for index in range(len(weights))]
    counts = largest_remainder(total, weights, names)
    assert sum(counts) == total
    for count, weight in zip(counts, weights, strict=True):
        assert count >= 0
        assert abs(count - total * weight / sum(weights)) < 1 + 1e-6
    back = largest_remainder(total, weights[::-1], names[::-1])
    assert back[::-1] == counts


def test_largest_remainder_by_hand() -> None:
    assert largest_remainder(10, [1, 1, 1], ["b", "a", "c"]) == [3, 4, 3]
    assert largest_remainder(8, [5, 3, 1], ["a", "b", "c"]) == [4, 3, 1]


@pytest.mark.parametrize(
    ("batch", "nodes"), [(192, 64), (128, 64), (64, 64), (96, 32), (8, 8), (7, 1), (1, 1)]
)
def test_canonical_nodes(batch: int, nodes: int) -> None:
    assert canonical_nodes(batch) == nodes


def test_replacements_go_through_the_stratum() -> None:
    found = [replacement(1, 0, 17, attempt, 10) for attempt in range(200)]
    assert set(found) == set(range(10))
    assert found != [replacement(1, 0, 18, attempt, 10) for attempt in range(200)]
    assert found == [replacement(1, 0, 17, attempt, 10) for attempt in range(200)]
