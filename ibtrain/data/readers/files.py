"""Where annotation files and images of a raw directory are; images never outside their folder."""

import os
import re
from functools import lru_cache
from pathlib import Path, PurePosixPath

from ibtrain.data.catalog import DatasetEntry
from ibtrain.data.readers.fields import FieldError

_COCO_FOLDERS = ("train2014", "val2014", "test2014", "test2015", "train2017", "val2017", "test2017")
VIDEO_SUFFIXES = (".mp4", ".avi", ".webm", ".mkv", ".mov")
_COCO_NUMBER = re.compile(r"(?:COCO_[a-z]+\d{4}_)?0*(\d{1,12})\.jpg")
_COCO_NAME = re.compile(r"COCO_[a-z]+\d{4}_\d{12}\.jpg")
_COCO_DIGITS = re.compile(r"\d{12}\.jpg")
_COCO_FOLDER = re.compile(
    r"data(sets?)?|images?|(ms)?coco.*|(train|val|test)+(20)?\d\d", re.IGNORECASE
)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm")


def annotation_files(raw: Path, split: str, entry: DatasetEntry) -> tuple[Path, ...]:
    """The annotation files (or folders) of a split: the first alternative that is wholly there.

    Raises:
        ValueError: unknown split, no such directory, or no alternative is complete.
    """
    if split not in entry.splits:
        raise ValueError(
            f"{entry.name} has no split {split!r}; there are {', '.join(entry.splits)}"
        )
    if not raw.is_dir():
        raise ValueError(f"the raw directory {raw} of {entry.name} is not there")
    alternatives = entry.splits[split].files
    for names in alternatives:
        found = [_locate(raw, name) for name in names]
        paths = tuple(path for path in found if path is not None)
        if len(paths) == len(names):
            return paths
    wanted = ", or ".join(" and ".join(names) for names in alternatives)
    raise ValueError(
        f"{raw} lacks the annotations of {entry.name} ({split}): {wanted}, there or in "
        f"annotations/. Get them from {entry.source}"
    )


def _locate(raw: Path, name: str) -> Path | None:
    """The file called `name`, or the folder where `name` ends in "/"."""
    for folder in ("", "annotations", "Annotations"):
        path = raw / folder / name
        try:
            if path.is_dir() if name.endswith("/") else path.is_file():
                return path
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    return None


class Images:
    """The image files of a dataset. Names come from annotations, so they are not trusted."""

    def __init__(self, raw: Path, entry: DatasetEntry) -> None:
        self._raw = Path(os.path.normpath(raw.absolute()))
        self._roots = [Path(os.path.normpath(self._raw / root)) for root in entry.image_roots]
        # What a path from the root of the file system may begin with, and the same as it is here.
        self._folders = {folder.resolve(): folder for folder in (self._raw, *self._roots)}
        self._folders |= {folder: folder for folder in (self._raw, *self._roots)}
        self._find = lru_cache(maxsize=4096)(self._find_uncached)

    def named(self, name: str) -> Path:
        """The image at the path `name`, as seen from an image folder; a back slash is read as a
        slash, and a path from the root of the file system may lead into the raw directory.

        Raises:
            FieldError: the path leaves the image folder, or no such file is there.
        """
        return self.first((name,))

    def first(self, names: tuple[str, ...]) -> Path:
        """The first image that is there at one of the relative paths `names`; errors as named."""
        inside = [self._inside(name) for name in names]
        found = dict.fromkeys(one for name in inside for one in (name, name.strip()))
        return self._existing(tuple(found), " or ".join(names))

    def coco(self, number: str) -> Path:
        """The COCO image of that number, of whatever year and split is on disk."""
        if not (number.isascii() and number.isdigit() and len(number) <= 12):
            raise FieldError(f"{number!r} is no COCO image number")
        padded = number.zfill(12)
        names = tuple(
            f"{folder}/{padded}.jpg"
            if folder.endswith("7")
            else f"{folder}/COCO_{folder}_{padded}.jpg"
            for folder in _COCO_FOLDERS
        )
        return self._existing(names, f"COCO image {number}")

    def named_or_coco(self, name: str) -> Path:
        """The image at `name`; else, where that is a name that COCO gives (COCO_..., or twelve
        digits in no other data's folder), COCO's image of that number.
        """
        inside = self._inside(name)
        found = self._find(tuple(dict.fromkeys((inside, inside.strip()))))  # a cell may begin blank
        if found is not None:
            return found
        *folders, last = PurePosixPath(name.replace("\\", "/")).parts
        named_by_coco = _COCO_NAME.fullmatch(last) is not None or (
            _COCO_DIGITS.fullmatch(last) is not None
            and all(_COCO_FOLDER.fullmatch(folder) for folder in folders)
        )
        number = coco_number(last) if named_by_coco else None
        return self.coco(number) if number is not None else self.named(name)

    def video(self, name: str) -> Path:
        """The video `name`, whatever its suffix, or the folder of that name with its frames.

        Raises:
            FieldError: the path leaves the folder, or there is neither.
        """
        name = self._inside(name)
        stem = name.removesuffix(PurePosixPath(name).suffix)
        names = tuple(dict.fromkeys((name, *(stem + suffix for suffix in VIDEO_SUFFIXES), stem)))
        for root in self._roots:
            for candidate in names:
                path = root / candidate
                if _present(path) or (candidate == stem and _present(path, folder=True)):
                    return path
        folders = ", ".join(str(root) for root in self._roots)
        raise FieldError(f"no video {name} and no folder of its frames; looked in {folders}")

    def _inside(self, name: str) -> str:
        """`name` as it is looked up; FieldError where it leads out of the folders of images."""
        path = PurePosixPath(name.replace("\\", "/"))
        if not path.name or ".." in path.parts or "\0" in name or len(name) > 1000:
            raise FieldError(f"the image path {name[:200]!r} leaves the image folder")
        if not path.is_absolute():
            return str(path)
        for folder, here in self._folders.items():
            if path.is_relative_to(folder):
                return str(here / path.relative_to(folder))
        raise FieldError(
            f"the image path {name[:200]!r} leaves the image folder: it is not in {self._raw}; "
            "write it as seen from there"
        )

    def _existing(self, names: tuple[str, ...], what: str) -> Path:
        found = self._find(names)
        if found is None:
            folders = ", ".join(str(root) for root in self._roots)
            raise FieldError(f"no image {what}; looked in {folders}")
        return found

    def _find_uncached(self, names: tuple[str, ...]) -> Path | None:
        for root in self._roots:
            for name in names:
                path = root / name
                if _present(path):
                    return path
        return None


def _present(path: Path, *, folder: bool = False) -> bool:
    try:
        return path.is_dir() if folder else path.is_file()
    except OSError as error:
        raise FieldError(f"{str(path)[:300]} cannot be looked up: {error.strerror}") from error


def coco_number(name: str) -> str | None:
    """The number in a COCO file name (of 2014 or 2017), without leading zeros, if it is one."""
    match = _COCO_NUMBER.fullmatch(PurePosixPath(name).name)
    return match.group(1) if match else None
