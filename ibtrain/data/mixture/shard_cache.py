"""Raw shards of one dataset, each of them verified before the first sample is read from it.

A shard that is compressed, or lies in an object store, is unpacked into CACHE/<dataset>-<content>/:
fetched and hashed, unpacked within bounds and hashed again, written under a temporary name, synced,
renamed. A raw shard in a directory is read in place. Every process hashes every file at its first
use, so what changed since is noticed; a bad file is removed and fetched again.

Processes, and jobs, share a cache. Who fetches a shard holds a lock that the kernel drops with
the process, however it dies; where a file system has no locks, a shard may be fetched twice.
"""

import contextlib
import fcntl
import os
import secrets
import socket
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import xxhash

from ibtrain.data.records import Record
from ibtrain.data.shards.format import RawShard
from ibtrain.data.shards.records import (
    ShardFile,
    ShardIndex,
    columns_to_record,
    fingerprint,
    stored_bytes,
    unpacked,
    wrong_hashes,
)
from ibtrain.data.shards.remote import NO_SPACE, fetch_file, is_url, local_directory
from ibtrain.files import write_whole

TRIES = 3
_OPEN_SHARDS = 256
_LOCKS = 64
_BLOCK_BYTES = 1 << 20


class BadShardError(ValueError):
    """A shard that stayed bad after it was fetched as often as is tried."""


class CacheError(OSError):
    """The cache directory cannot be written."""

    def __str__(self) -> str:
        return str(self.args[0])


class ShardCache:
    """The shards of one dataset, to be read sample by sample.

    Args:
        name: the dataset's.
        location: the directory or the address where its shards are kept.
        index: of the shards.
        cache: where raw shards are put, in a directory of their own content.
    """

    def __init__(self, name: str, location: str, index: ShardIndex, cache: Path) -> None:
        self.index = index
        self.bad: dict[int, str] = {}
        """Shards that are given up, by number, with the reason."""
        self.repaired: list[tuple[int, str]] = []
        """Shards that were bad and are good after they were fetched again, with the reason."""
        self._location = location
        self._source = local_directory(location)
        self._directory = cache / f"{name}-{fingerprint(index)[:16]}"
        self._open: OrderedDict[int, RawShard] = OrderedDict()
        self._verified: set[int] = set()

    def record(self, shard: int, number: int) -> Record:
        """Sample `number` of a shard.

        Raises:
            BadShardError: the shard is bad, and stays so.
            ValueError: the shard is as its index says, but this sample is damaged.
            CacheError: the cache cannot be written.
        """
        try:
            return columns_to_record(self.open(shard).columns(number))
        except (BadShardError, CacheError):
            raise
        except (ValueError, OSError):
            # The file may have been changed since it was verified: look again before blaming it.
            self.forget(shard)
        return columns_to_record(self.open(shard).columns(number))

    def open(self, number: int) -> RawShard:
        """A verified shard, open for reading; errors as `record`."""
        if number in self.bad:
            raise BadShardError(self.bad[number])
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        try:
            opened = self._opened(number)
        except CacheError:
            raise
        except (ValueError, OSError) as error:
            self.bad[number] = str(error)
            raise BadShardError(str(error)) from error
        self._open[number] = opened
        if len(self._open) > _OPEN_SHARDS:
            self._open.popitem(last=False)[1].close()
        return opened

    def _opened(self, number: int) -> RawShard:
        shard = self.index.shards[number]
        verified = number in self._verified
        try:
            directory = (
                self._read_in_place(number) if self._in_place(shard) else self._cached(number)
            )
            return RawShard(directory, shard.raw_name, shard.raw_bytes, shard.samples)
        except CacheError:
            raise
        except (ValueError, OSError):
            if not verified:
                raise
        # It was good once in this process and has changed since.
        self.forget(number)
        return self._opened(number)

    def forget(self, number: int) -> None:
        """Verifies a shard anew at its next use."""
        self._verified.discard(number)
        opened = self._open.pop(number, None)
        if opened is not None:
            opened.close()

    def location_of(self, number: int) -> str:
        """Where a shard is kept, for messages."""
        return f"{self._location.rstrip('/')}/{self.index.shards[number].name}"

    def _in_place(self, shard: ShardFile) -> bool:
        return self._source is not None and not shard.compressed

    def _read_in_place(self, number: int) -> Path:
        assert self._source is not None
        shard = self.index.shards[number]
        wrong = "" if number in self._verified else "not read"
        for _ in range(TRIES):
            wrong = wrong and _difference(self._source / shard.name, shard)
            if not wrong:
                self._verified.add(number)
                return self._source
        raise ValueError(f"{self.location_of(number)}: {wrong}")

    def _cached(self, number: int) -> Path:
        """The directory with the verified raw file of a shard, fetched where it is not there."""
        shard = self.index.shards[number]
        path = self._directory / shard.raw_name
        if number in self._verified and path.is_file():
            return self._directory
        if _difference(path, shard):
            with self._written(path), self._locked(number):
                # Another process may have put it there meanwhile.
                wrong = _difference(path, shard)
                if wrong:
                    found = [f"in the cache: {wrong}"] if path.exists() else []
                    path.unlink(missing_ok=True)
                    self._fetch_with_tries(number, path, found)
        self._verified.add(number)
        return self._directory

    def _fetch_with_tries(self, number: int, path: Path, found: list[str]) -> None:
        """Puts a shard into the cache; `found` is what was wrong with it before."""
        for attempt in range(TRIES):
            try:
                raw = self._fetch(number)
                break
            except ValueError as error:
                if attempt == TRIES - 1:
                    raise
                found.append(str(error))
                if self._source is None:
                    time.sleep(2.0**attempt)  # the store, or the way to it, may be busy
        write_whole(path, raw, temporary=_temporary(path))
        self.repaired += [(number, reason) for reason in found]

    def _fetch(self, number: int) -> bytes:
        """The content of a shard; ValueError where it is not what its index says."""
        shard = self.index.shards[number]
        location = self.location_of(number)
        if self._source is not None:
            stored = stored_bytes(ShardIndex(self._source, (shard,), shard.samples), shard)
        else:
            temporary = _temporary(self._directory / shard.name)
            fetch_file(location, temporary)
            try:
                one = replace(shard, name=temporary.name)
                stored = stored_bytes(ShardIndex(self._directory, (one,), shard.samples), one)
            except ValueError as error:
                raise ValueError(str(error).replace(str(temporary), location)) from error
            finally:
                temporary.unlink(missing_ok=True)
        wrong = wrong_hashes(stored, _fastest(shard.hashes))
        if wrong:
            raise ValueError(f"{location}: {wrong} differs from the index")
        raw = unpacked(stored, shard, location)
        wrong = wrong_hashes(raw, _fastest(shard.raw_hashes))
        if wrong:
            raise ValueError(f"{location}: {wrong} of the unpacked shard differs from the index")
        return raw

    @contextlib.contextmanager
    def _written(self, path: Path) -> Iterator[None]:
        """Says in one sentence that the cache cannot be written."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            yield
        except ValueError:  # of what is read; some of them are an OSError, too
            raise
        except OSError as error:
            remedy = "free space there" if error.errno in NO_SPACE else "make it writable"
            raise CacheError(
                f"{path} cannot be written ({error.strerror or error}): {remedy}, or name another "
                "directory with data.cache"
            ) from error

    @contextlib.contextmanager
    def _locked(self, number: int) -> Iterator[None]:
        """Holds the lock of a shard, and removes what a killed process of this machine left."""
        shard = self.index.shards[number]
        with (self._directory / f".lock-{number % _LOCKS:02}").open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:  # no locks on this file system
                yield
                return
            for name in {shard.name, shard.raw_name}:
                for leftover in self._directory.glob(f"{_temporary_prefix(name)}*"):
                    leftover.unlink(missing_ok=True)
            yield


def _fastest(hashes: dict[str, str]) -> dict[str, str]:
    """One of a file's hashes, the last and fastest."""
    return dict([list(hashes.items())[-1]])


def _difference(path: Path, shard: ShardFile) -> str:
    """In what a raw file differs from its index; empty where it does not."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != shard.raw_bytes:
                return f"{size} bytes, the index says {shard.raw_bytes}"
            if "xxh64" not in shard.raw_hashes:
                return _differs(wrong_hashes(file.read(), _fastest(shard.raw_hashes)))
            digest = xxhash.xxh64()
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        return error.strerror or str(error)
    return _differs("" if digest.hexdigest() == shard.raw_hashes["xxh64"] else "xxh64")


def _differs(wrong: str) -> str:
    return f"{wrong} differs from the index" if wrong else ""


def _temporary_prefix(name: str) -> str:
    return f".{name}.{socket.gethostname()}."


def _temporary(path: Path) -> Path:
    """A name beside `path` that nobody else takes."""
    return path.with_name(f"{_temporary_prefix(path.name)}{os.getpid()}-{secrets.token_hex(4)}.tmp")


def remote_index_directory(location: str, cache: Path) -> Path:
    """Fetches the index of shards in an object store; returns the directory that it is put in.

    Raises:
        FetchError: it cannot be had.
        OSError: the cache cannot be written.
    """
    assert is_url(location)
    directory = cache / f"index-{xxhash.xxh64(location.encode()).hexdigest()}"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "index.json"
    temporary = _temporary(path)
    fetch_file(f"{location.rstrip('/')}/index.json", temporary)
    temporary.replace(path)
    return directory
