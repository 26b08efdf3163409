"""A model's name on the hub, looked up in the local cache; the network only where it is allowed."""

import re
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.bin"]


def resolve_directory(path: Path, allow_download: bool) -> Path:
    """The directory that `path` is, or that the hub model of this name has in the local cache.

    Args:
        path: a directory, or a name of the form owner/name.
        allow_download: whether what is not in the cache may be fetched.

    Raises:
        ValueError: when it is neither.
    """
    if path.is_dir() or not _NAME.fullmatch(str(path)):
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    try:
        found = snapshot_download(
            str(path), local_files_only=not allow_download, allow_patterns=_FILES
        )
    except HFValidationError:
        return path  # no name that the hub could have
    except LocalEntryNotFoundError as error:
        how = (
            "and it could not be downloaded"
            if allow_download
            else "and nothing is fetched unless model.allow_download is true"
        )
        raise ValueError(
            f"{path} is no directory here, and no model of that name is in the local cache of the "
            f"hub, {how}"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(f"{path} could not be fetched from the hub ({error})") from error
    return Path(found)
