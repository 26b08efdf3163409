import errno
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from streaming.base.storage import download

from ibtrain.data.mixture import shard_cache
from ibtrain.data.mixture.shard_cache import (
    BadShardError,
    CacheError,
    ShardCache,
    remote_index_directory,
)
from ibtrain.data.shards import remote
from ibtrain.data.shards.records import check_index, read_index, read_records, record_to_columns
from ibtrain.data.shards.remote import FetchError, fetch_file
from tests.data.small_shards import record, write_shards

FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compressed shards of 4, 4 and 3 records in a/, raw ones in raw/; do not write into them."""
    directory = tmp_path_factory.mktemp("written")
    write_shards(directory / "a", "a", 11, per_shard=4)
    write_shards(directory / "raw", "raw", 11, per_shard=4, compressed=False)
    return directory


@pytest.fixture
def source(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written / "a", tmp_path / "a"))


def opened(source: Path, cache: Path) -> ShardCache:
    return ShardCache(source.name, str(source), check_index(source), cache)


def all_records(shards: ShardCache) -> list[Any]:
    return [
        shards.record(number, row)
        for number, shard in enumerate(shards.index.shards)
        for row in range(shard.samples)
    ]


def flip_a_byte(file: Path, at: float = 0.5) -> None:
    content = bytearray(file.read_bytes())
    content[int(len(content) * at)] ^= 0x55
    file.write_bytes(content)


def cached(cache: Path, number: int = 0) -> Path:
    (file,) = cache.glob(f"*/shard.{number:05}.mds")
    return file


def leftovers(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.name.endswith(".tmp")]


def test_every_record_from_compressed_shards(source: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in source.iterdir())
    found = all_records(opened(source, tmp_path / "cache"))
    assert found == [record("a", number) for number in range(11)] == list(read_records(source))
    assert sorted(path.name for path in source.iterdir()) == before  # nothing is left beside it
    names = [f"shard.{number:05}.mds" for number in range(3)]
    (directory,) = (tmp_path / "cache").iterdir()
    assert sorted(p.name for p in directory.iterdir() if not p.name.startswith(".lock-")) == names


def test_raw_shards_are_read_in_place(written: Path, tmp_path: Path) -> None:
    found = all_records(opened(written / "raw", tmp_path / "cache"))
    assert found == [record("raw", number) for number in range(11)]
    assert not (tmp_path / "cache").exists()


def test_a_shard_is_hashed_once_in_a_process(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_records(opened(source, tmp_path))
    hashed: list[str] = []
    original = shard_cache._difference
    monkeypatch.setattr(
        shard_cache,
        "_difference",
        lambda path, shard: hashed.append(path.name) or original(path, shard),
    )
    monkeypatch.setattr(shard_cache, "_OPEN_SHARDS", 1)
    again = opened(source, tmp_path)
    all_records(again)
    all_records(again)
    assert sorted(hashed) == [f"shard.{number:05}.mds" for number in range(3)]


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_byte,
        lambda file: os.truncate(file, 100),
        lambda file: os.truncate(file, 0),
        lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    ],
)
def test_a_bad_file_in_the_cache_is_fetched_again(
    source: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    all_records(opened(source, tmp_path / "cache"))
    good = cached(tmp_path / "cache", 1).read_bytes()
    damage(cached(tmp_path / "cache", 1))
    shards = opened(source, tmp_path / "cache")
    assert all_records(shards) == [record("a", number) for number in range(11)]
    assert cached(tmp_path / "cache", 1).read_bytes() == good
    ((number, reason),) = shards.repaired
    assert number == 1 and reason.startswith("in the cache: ")


@pytest.mark.parametrize("change", [flip_a_byte, lambda file: os.truncate(file, 50), Path.unlink])
def test_what_changes_while_it_is_in_use_is_noticed(
    source: Path, tmp_path: Path, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_cache, "_OPEN_SHARDS", 1)
    shards = opened(source, tmp_path / "cache")
    all_records(shards)
    change(cached(tmp_path / "cache"))
    if change is flip_a_byte:
        # The offsets, which are looked at again when the file is opened again.
        cached(tmp_path / "cache").write_bytes(b"\xff" * cached(tmp_path / "cache").stat().st_size)
    assert shards.record(0, 2) == record("a", 2)


def test_a_bad_source_is_tried_three_times_and_given_up(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip_a_byte(source / "shard.00001.mds.zstd")
    tries: list[str] = []
    original = shard_cache.stored_bytes
    monkeypatch.setattr(
        shard_cache, "stored_bytes", lambda i, shard: tries.append(shard.name) or original(i, shard)
    )
    shards = opened(source, tmp_path / "cache")
    for _ in range(2):
        with pytest.raises(BadShardError) as caught:
            shards.record(1, 0)
        assert str(source / "shard.00001.mds.zstd") in str(caught.value)
        assert "xxh64 differs from the index" in str(caught.value)
    assert tries == ["shard.00001.mds.zstd"] * 3
    assert shards.bad.keys() == {1}
    assert shards.record(0, 3) == record("a", 3) and shards.record(2, 0) == record("a", 8)
    assert not list((tmp_path / "cache").glob("*/shard.00001*"))


def test_a_bad_raw_source_is_given_up_and_left_alone(written: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(written / "raw", tmp_path / "raw"))
    flip_a_byte(source / "shard.00001.mds")
    bad = (source / "shard.00001.mds").read_bytes()
    shards = opened(source, tmp_path / "cache")
    with pytest.raises(BadShardError, match=r"shard\.00001\.mds: xxh64 differs from the index"):
        shards.record(1, 0)
    assert (source / "shard.00001.mds").read_bytes() == bad
    assert shards.record(0, 0) == record("raw", 0)


def test_a_source_that_is_bad_for_a_while(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, failures = shard_cache.stored_bytes, [ValueError("torn"), ValueError("torn again")]

    def flaky(index: Any, shard: Any) -> bytes:
        if failures:
            raise failures.pop(0)
        return original(index, shard)

    monkeypatch.setattr(shard_cache, "stored_bytes", flaky)
    shards = opened(source, tmp_path / "cache")
    assert shards.record(0, 0) == record("a", 0)
    assert shards.repaired == [(0, "torn"), (0, "torn again")]
    assert shards.bad == {}


def test_a_raw_hash_that_differs_is_bad(source: Path, tmp_path: Path) -> None:
    path = source / "index.json"
    index = json.loads(path.read_text())
    index["shards"][2]["raw_data"]["hashes"]["xxh64"] = "0" * 16
    path.write_text(json.dumps(index))
    with pytest.raises(BadShardError, match="xxh64 of the unpacked shard differs"):
        opened(source, tmp_path / "cache").record(2, 0)
    assert not list((tmp_path / "cache").glob("*/shard.*"))


def test_a_damaged_record_is_not_the_shards_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = lambda one: record_to_columns(one) | ({"instructions": []} if one.id == "2" else {})  # noqa: E731
    monkeypatch.setattr("tests.data.small_shards.record_to_columns", columns)
    shards = opened(write_shards(tmp_path / "a", "a", 4), tmp_path / "cache")
    with pytest.raises(ValueError, match="column 'instructions'") as caught:
        shards.record(0, 2)
    assert not isinstance(caught.value, BadShardError)
    assert shards.record(0, 3) == record("a", 3)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_cache_that_cannot_be_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(path: Path, data: bytes, *, temporary: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(shard_cache, "write_whole", full)
    shards = opened(source, tmp_path / "cache")
    with pytest.raises(CacheError) as caught:
        shards.record(0, 0)
    assert os.strerror(code) in str(caught.value) and "data.cache" in str(caught.value)
    assert str(tmp_path / "cache") in str(caught.value)
    assert shards.bad == {}  # it is not the shard's fault
    monkeypatch.undo()
    assert shards.record(0, 0) == record("a", 0)


def test_a_file_where_the_cache_should_be(source: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(CacheError, match=r"name another directory with data\.cache"):
        opened(source, tmp_path / "cache").record(0, 0)


def read_all(source: Path, cache: Path, out: Path) -> None:
    shards = opened(source, cache)
    out.write_text(" ".join(one.id for one in all_records(shards)))


def test_processes_share_a_cache(source: Path, tmp_path: Path) -> None:
    outs = [tmp_path / f"out-{number}" for number in range(5)]
    processes = [
        FORK.Process(target=read_all, args=(source, tmp_path / "cache", out)) for out in outs
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert {out.read_text() for out in outs} == {" ".join(map(str, range(11)))}
    assert not leftovers(tmp_path / "cache")


def stall(source: Path, cache: Path) -> None:
    os.fsync = lambda descriptor: time.sleep(60)  # it is killed before the rename
    opened(source, cache).record(0, 0)


def test_what_a_kill_leaves_blocks_nobody(source: Path, tmp_path: Path) -> None:
    process = FORK.Process(target=stall, args=(source, tmp_path / "cache"))
    process.start()
    end = time.monotonic() + 60
    while not any(path.stat().st_size for path in leftovers(tmp_path)):
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    assert leftovers(tmp_path)
    started = time.monotonic()
    assert opened(source, tmp_path / "cache").record(0, 1) == record("a", 1)
    assert time.monotonic() - started < 10
    assert not leftovers(tmp_path)


def test_a_file_system_without_locks(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: Any, kind: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(shard_cache.fcntl, "flock", refuse)
    assert len(all_records(opened(source, tmp_path / "cache"))) == 11


class Store(download.CloudDownloader):
    """An object store that is a directory; what it is asked for is noted."""

    directory = Path()
    asked: ClassVar[list[str]] = []
    error: Exception | None = None

    @staticmethod
    def _client_identifier() -> str:
        return "store"

    def clean_up(self) -> None:
        pass

    def _download_file_impl(self, remote: str, local: str, timeout: float) -> None:
        self.asked.append(remote)
        if self.error is not None:
            raise self.error
        shutil.copyfile(self.directory / remote.removeprefix("store://bucket/"), local)


@pytest.fixture
def store(source: Path, monkeypatch: pytest.MonkeyPatch) -> type[Store]:
    monkeypatch.setitem(download.DOWNLOADER_MAPPINGS, "store", Store)
    monkeypatch.setattr(Store, "directory", source.parent)
    monkeypatch.setattr(Store, "asked", [])
    monkeypatch.setattr(shard_cache.time, "sleep", lambda seconds: None)
    return Store


def test_shards_in_an_object_store(store: type[Store], tmp_path: Path) -> None:
    index = read_index(remote_index_directory("store://bucket/a/", tmp_path / "cache"))
    shards = ShardCache("a", "store://bucket/a/", index, tmp_path / "cache")
    assert all_records(shards) == [record("a", number) for number in range(11)]
    assert store.asked == [
        "store://bucket/a/index.json",
        *(f"store://bucket/a/shard.{number:05}.mds.zstd" for number in range(3)),
    ]
    assert not leftovers(tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.zstd"))


def test_a_bad_shard_in_an_object_store(store: type[Store], source: Path, tmp_path: Path) -> None:
    index = read_index(remote_index_directory("store://bucket/a", tmp_path / "cache"))
    os.truncate(source / "shard.00000.mds.zstd", 40)
    shards = ShardCache("a", "store://bucket/a", index, tmp_path / "cache")
    with pytest.raises(BadShardError, match=r"^store://bucket/a/shard\.00000\.mds\.zstd: 40 bytes"):
        shards.record(0, 0)
    assert store.asked[1:] == ["store://bucket/a/shard.00000.mds.zstd"] * 3
    assert not leftovers(tmp_path / "cache")


@pytest.mark.parametrize(
    "error", [RuntimeError("no\ncredentials"), KeyError("x"), OSError(5, "eh")]
)
def test_whatever_a_store_raises_becomes_a_sentence(
    store: type[Store], tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "error", error)
    with pytest.raises(
        FetchError, match=r"^store://bucket/a/index\.json cannot be fetched: "
    ) as caught:
        fetch_file("store://bucket/a/index.json", tmp_path / "index.json")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, OSError)


def test_addresses(source: Path, tmp_path: Path) -> None:
    fetch_file(f"file://{source}/index.json", tmp_path / "one")
    fetch_file(f"{source}/index.json", tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with pytest.raises(FetchError, match=r"none of .*gs, .*s3"):
        fetch_file("gopher://bucket/index.json", tmp_path / "three")
    with pytest.raises(FetchError, match=r"nothing\.json cannot be fetched"):
        fetch_file(f"{source}/nothing.json", tmp_path / "three")
    assert not (tmp_path / "three").exists()
    assert remote.local_directory("file:///with%20space/x") == Path("/with space/x")
    assert remote.local_directory("s3://bucket/x") is None
