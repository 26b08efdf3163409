"""Shards, caches and disks that go wrong while ranks and workers read from them."""

import json
import os
import re
import signal
import time
from pathlib import Path

import psutil
import pytest

from ibtrain.data.shards.records import read_records
from ibtrain.run_directory import latest_step, verify_step
from tests.data.small_shards import write_shards
from tests.distributed.conftest import Group, Zygote
from tests.distributed.test_failures import (  # noqa: F401  (fixtures)
    digests,
    fill,
    finished,
    flip_a_byte,
    run,
    sentence,
    small_disk,
    start,
    succeeds,
    world,
)

SPLITS = [(1, 0), (2, 0), (2, 2)]  # ranks, workers of each


def quarantine(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "quarantine.jsonl").read_text().splitlines()]


def metrics(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("ranks", "workers"), SPLITS)
def test_a_flipped_byte_in_the_only_shard(
    zygote: Zygote,
    world: Path,  # noqa: F811
    tmp_path: Path,
    ranks: int,
    workers: int,
) -> None:
    (shard,) = (world / "shards/vqav2").glob("shard.*")
    flip_a_byte(shard)
    group = start(zygote, world, tmp_path / "run", f"data.workers={workers}", ranks=ranks)
    complaint = sentence(group, 1)
    assert complaint.strip().count("\n") == 0
    assert re.match(r"(\d+) of \1 samples of vqav2 cannot be read, more than", complaint)
    assert f"{shard}: " in complaint and "xxh64 differs from the index" in complaint
    assert f"ibtrain data verify {shard.parent} --repair-from" in complaint
    (entry,) = quarantine(tmp_path / "run")
    assert (entry["kind"], entry["dataset"], entry["shard"]) == ("shard", "vqav2", shard.name)
    assert entry["step"] == 1 and "xxh64 differs" in entry["reason"]


def many_shards(world: Path) -> Path:  # noqa: F811
    """Writes vqav2's shards anew, eight records in each; returns the directory."""
    records = list(read_records(world / "shards/vqav2"))
    directory = world / "shards/vqav2-small"
    return write_shards(
        directory, "vqav2", len(records), per_shard=8, make=lambda _, number: records[number]
    )


@pytest.mark.parametrize(("ranks", "workers"), SPLITS)
def test_a_bad_shard_within_the_budget(
    zygote: Zygote,
    world: Path,  # noqa: F811
    tmp_path: Path,
    ranks: int,
    workers: int,
) -> None:
    """Its samples are replaced, the same on any number of ranks and workers."""
    directory = many_shards(world)
    flip_a_byte(directory / "shard.00001.mds.zstd")
    overrides = [f"data.mixture.1.path={directory}", "data.bad_shard_budget=0.5"]
    out = tmp_path / "order.json"
    orders = []
    for count, each in ((1, 0), (ranks, workers)):
        more = [*overrides, f"root={world}", f"output={tmp_path / f'{count}'}"]
        arguments = (str(world / "tiny.yaml"), str(out), "0", "20", *more, f"data.workers={each}")
        zygote.run(count, "tests.distributed.jobs:sample_order", *arguments)
        orders.append(json.loads(out.read_text()))
    assert orders[0] == orders[1]
    lost = {record.id for record in list(read_records(world / "shards/vqav2"))[8:16]}
    given = {id for _, batch in orders[0] for name, id in batch if name == "vqav2"}
    assert given and not given & lost

    succeeds(
        start(
            zygote,
            world,
            tmp_path / "run",
            *overrides,
            f"data.workers={workers}",
            "training.log_every=5",
            ranks=ranks,
        )
    )
    (entry,) = quarantine(tmp_path / "run")
    assert (entry["kind"], entry["shard"]) == ("shard", "shard.00001.mds.zstd")
    assert entry["samples"] == 8
    counted = [line["quarantined"] for line in metrics(tmp_path / "run")]
    assert sum(line["vqav2"] for line in counted) >= 1
    assert all(line["coco_caption"] == line["aokvqa"] == 0 for line in counted)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_flipped_byte_in_the_cache(
    zygote: Zygote,
    world_directory: Path,
    finished: Path,  # noqa: F811
    run: Path,  # noqa: F811
    workers: int,
) -> None:
    """It is noticed after a restart and put right: the run is the one that nothing disturbed."""
    (shard,) = (run / "cache").glob("vqav2-*/shard.00000.mds")
    good = shard.read_bytes()
    flip_a_byte(shard)
    resume = ("checkpoint.resume_from=step-00000008", f"data.workers={workers}")
    assert "going on from step-00000008" in succeeds(start(zygote, world_directory, run, *resume))
    assert digests(latest_step(run)) == digests(latest_step(finished))
    assert shard.read_bytes() == good
    entries = quarantine(run)
    assert {(entry["kind"], entry["dataset"]) for entry in entries} == {("refetched", "vqav2")}
    assert entries[0]["reason"] == "in the cache: xxh64 differs from the index"


@pytest.mark.parametrize(("ranks", "workers"), SPLITS)
def test_no_space_in_the_cache(
    zygote: Zygote,
    world_directory: Path,
    small_disk: Path,  # noqa: F811
    tmp_path: Path,
    ranks: int,
    workers: int,
) -> None:
    (small_disk / "cache").mkdir()
    fill(small_disk)
    overrides = (f"data.cache={small_disk / 'cache'}", f"data.workers={workers}")
    group = start(zygote, world_directory, tmp_path / "run", *overrides, ranks=ranks)
    complaint = sentence(group, 1)
    assert complaint.strip().count("\n") == 0
    assert re.search(r"cannot be written \(No space left on device\): free space", complaint)
    assert str(small_disk / "cache") in complaint and "data.cache" in complaint


def test_two_jobs_on_one_cache_and_a_killed_one_before(
    zygote: Zygote,
    world_directory: Path,
    finished: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    cache = tmp_path / "cache"
    overrides = (f"data.cache={cache}", "data.workers=2")
    killed = start(zygote, world_directory, tmp_path / "killed", *overrides)
    killed.wait_until(lambda: any(cache.glob("*/*")))
    workers = workers_of(killed)
    blocks = set(Path("/dev/shm").iterdir())
    killed.kill()
    killed.wait()
    assert workers
    all_end(workers)
    groups = [
        start(zygote, world_directory, tmp_path / name, *overrides) for name in ("one", "other")
    ]
    for group, name in zip(groups, ("one", "other"), strict=True):
        succeeds(group)
        assert digests(latest_step(tmp_path / name)) == digests(latest_step(finished))
    assert not [path for path in cache.rglob("*") if path.name.endswith(".tmp")]
    assert not set(Path("/dev/shm").iterdir()) - blocks


def all_end(processes: list[psutil.Process]) -> None:
    end = time.monotonic() + 20
    while any(process.is_running() for process in processes):
        assert time.monotonic() < end, "a process lives on"
        time.sleep(0.1)


def workers_of(group: Group) -> list[psutil.Process]:
    return [child for pid in group.pids for child in psutil.Process(pid).children(recursive=True)]


def test_a_killed_worker(zygote: Zygote, world_directory: Path, tmp_path: Path) -> None:
    group = start(zygote, world_directory, tmp_path / "run", "data.workers=1", "training.steps=500")
    group.wait_for_steps(1)
    workers = workers_of(group)
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)
    assert "a process that reads data died" in sentence(group, 1)
    all_end(workers)


def test_a_stopped_worker(zygote: Zygote, world_directory: Path, tmp_path: Path) -> None:
    overrides = ("data.workers=1", "data.worker_timeout=3", "training.steps=500")
    group = start(zygote, world_directory, tmp_path / "run", *overrides)
    group.wait_for_steps(1)
    workers = workers_of(group)
    workers[1].suspend()
    assert "no batch came within 3 seconds" in sentence(group, 1)
    all_end(workers)


def test_a_signal_to_every_process_saves_first(
    zygote: Zygote, world_directory: Path, tmp_path: Path
) -> None:
    """As a scheduler sends it: workers leave it to the process that trains."""
    group = start(zygote, world_directory, tmp_path / "run", "data.workers=2", "training.steps=500")
    group.wait_for_steps(2)
    for process in workers_of(group):
        process.send_signal(signal.SIGTERM)
    for pid in group.pids:
        os.kill(pid, signal.SIGTERM)
    assert group.wait(60) == [3, 3], group.output()
    assert 0 < verify_step(latest_step(tmp_path / "run")) < 500
