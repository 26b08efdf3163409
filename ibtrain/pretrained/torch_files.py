"""Tensors of files that torch.save wrote (.pth, .bin): a pickle, and files come from elsewhere.

Such a file is opened with `weights_only=True`, which builds tensors and plain containers and calls
nothing that the file names. Before that the archive is looked at: compressed entries, which could
unpack without bound, are refused. Tensors stay mapped to the file until one is asked for.
"""

import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ibtrain.files import check_not_pointer
from ibtrain.pretrained.tensors import check_dtypes, check_single

_FLOATS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
LARGEST_FILE = 200 * 2**30
"""Bytes; no released checkpoint is near it."""
_LARGEST_OLD_FILE = 16 * 2**30  # of the format before 2020, which cannot be mapped
_LARGEST_PICKLE = 64 * 2**20
# Where training programs keep the weights within what they save; LAVIS says "model".
_WRAPPERS = ("model", "state_dict", "module")
_FORBIDDEN = re.compile(r"unsupported (?:global: )?(?:global|class) ([\w.]+)", re.IGNORECASE)
_MALFORMED = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    struct.error,
    zipfile.BadZipFile,
    NotImplementedError,
)


class TorchSource:
    """Named tensors of one or more files that torch.save wrote.

    Args:
        files: each holds a state dict, bare or under "model" as LAVIS saves it.
        description: what they are, for messages.

    Raises:
        ValueError: when a file is missing, is too large, holds more than tensors, is not a state
            dict, or holds weights of a dtype that weights do not have, one that differs from its
            like, or one that another file holds as well.
    """

    def __init__(self, files: Iterable[Path], description: str) -> None:
        self.description = description
        self._tensors: dict[str, Tensor] = {}
        file_of: dict[str, Path] = {}
        for file in files:
            tensors = read_state_dict(file)
            for name in tensors:
                check_single(name, file_of.setdefault(name, file), file)
            self._tensors.update(tensors)
        check_dtypes(
            {
                name: _FLOATS.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
                for name, tensor in self._tensors.items()
                if not name.endswith("position_ids")
            },
            file_of,
        )

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape."""
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def get(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        return self._tensors[name]


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """The state dict in a file, mapped and not read where the file allows it.

    Raises:
        ValueError: see `TorchSource`.
    """
    if not file.is_file():
        found = "is a directory, not a file" if file.is_dir() else "is missing"
        raise ValueError(f"{file} {found}; give the path of the downloaded file")
    check_not_pointer(file)
    mapped = _looked_at(file)
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles in another protocol
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except (*_MALFORMED, OSError) as error:
        raise ValueError(f"{file} is refused: {_reason(error)}") from error
    return _state_dict(file, loaded)


def _looked_at(file: Path) -> bool:
    """Whether the file is an archive that can be mapped; refuses one that is unreasonable."""
    size = file.stat().st_size
    if size > LARGEST_FILE:
        raise ValueError(f"{file} has {size:,} bytes, more than any checkpoint; is it the file?")
    try:
        if not zipfile.is_zipfile(file):
            _check_old_format(file, size)
            return False
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (*_MALFORMED, OSError) as error:
        raise ValueError(f"{file} is refused: {_reason(error)}") from error
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
            raise ValueError(
                f"{file} is refused: its entry {entry.filename!r} is compressed, as torch.save "
                "never does"
            )
        if entry.filename.endswith(".pkl") and entry.file_size > _LARGEST_PICKLE:
            raise ValueError(f"{file} is refused: {entry.filename!r} has {entry.file_size:,} bytes")
    return True


def _check_old_format(file: Path, size: int) -> None:
    if size > _LARGEST_OLD_FILE:
        raise ValueError(
            f"it is not an archive as torch.save writes them, and with {size:,} bytes too large to "
            "be read otherwise; save it again with a present torch"
        )


def _reason(error: Exception) -> str:
    """One sentence of what torch says in many."""
    text = " ".join(str(error).split())
    named = _FORBIDDEN.search(text)
    if named:
        return f"it holds more than tensors ({named.group(1)}), and nothing but tensors is read"
    text = text.partition("Check the documentation")[0].rpartition("error: ")[2].strip()
    return (
        f"it is not a whole file of tensors as torch.save writes them ({text[:120] or repr(error)})"
    )


def _state_dict(file: Path, loaded: Any) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    if not isinstance(loaded, dict):
        raise ValueError(
            f"{file} holds a {type(loaded).__name__}, not a state dict (names and their tensors)"
        )
    if not loaded:
        raise ValueError(f"{file} holds an empty state dict; is it the file that was meant?")
    for name, tensor in loaded.items():
        if not isinstance(name, str):
            raise ValueError(
                f"{file} is not a state dict: {str(name)[:80]!r} is a {type(name).__name__}, not a "
                "tensor's name"
            )
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"{file} is not a state dict: {str(name)[:80]!r} is a {type(tensor).__name__}, "
                "not a tensor"
            )
        _check_plain(file, name, tensor)
    return loaded


def _check_plain(file: Path, name: str, tensor: Tensor) -> None:
    """Refuses what is not plain values in memory: sparse, quantised, or larger than its storage."""
    plain = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta
    if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"{file}: {name!r} is not a plain tensor; save it as one")
