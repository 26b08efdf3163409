"""Fetching one file from wherever shards are kept: a directory, or an object store.

Object stores are reached through Streaming's downloaders, so credentials are found as its
documentation says.
"""

import errno
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlsplit

SECONDS = 300.0
"""How long one file may take."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What the disk that is written to says; trying again does not help."""


class FetchError(ValueError, OSError):
    """A file that could not be fetched; says which and why."""

    def __str__(self) -> str:
        return str(self.args[0])


def is_url(location: str) -> bool:
    """Whether `location` is an address (s3://bucket/folder) and not a path."""
    return "://" in location


def local_directory(location: str) -> Path | None:
    """The directory that a path or a file:// address names, None for an object store."""
    if not is_url(location):
        return Path(location)
    address = urlsplit(location)
    return Path(unquote(address.path)) if address.scheme == "file" else None


def fetch_file(remote: str, local: Path) -> None:
    """Copies the file at a path or an address to `local`, which must not exist.

    It may be cut off or wrong: the caller holds it against its size and hash.

    Raises:
        FetchError: it is not there, or cannot be had; a ValueError and an OSError.
        OSError: `local` cannot be written (a full disk); nothing is left of it.
    """
    source = local_directory(remote)
    try:
        if source is not None:
            shutil.copyfile(source, local)
        else:
            _download(remote, local)
    except OSError as error:
        local.unlink(missing_ok=True)
        if error.errno in NO_SPACE:
            raise OSError(error.errno, error.strerror, str(local)) from error
        raise FetchError(f"{remote} cannot be fetched: {error}") from error


def _download(remote: str, local: Path) -> None:
    """From an object store; FetchError whatever its library raised."""
    # takes seconds to import, which only object stores need
    from streaming.base.storage.download import DOWNLOADER_MAPPINGS, CloudDownloader

    scheme = urlsplit(remote).scheme
    if scheme not in DOWNLOADER_MAPPINGS:
        known = ", ".join(sorted(name for name in DOWNLOADER_MAPPINGS if name))
        raise FetchError(f"{remote} cannot be fetched: {scheme}:// is none of {known}")
    with ThreadPoolExecutor(1) as thread:
        # Every store's library raises errors of its own, without a common ancestor.
        error = thread.submit(
            CloudDownloader.direct_download, remote, str(local), SECONDS
        ).exception()
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        raise error
    if error is not None:
        local.unlink(missing_ok=True)
        said = " ".join(str(error).split()) or type(error).__name__
        raise FetchError(f"{remote} cannot be fetched: {said}") from error
    if not local.is_file():
        raise FetchError(f"{remote} cannot be fetched: nothing came")
