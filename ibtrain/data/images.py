"""Images: once into shards (`reencode`), and at every reading into pixels (`open_pixels`).

Whatever a dataset brings (rotated by EXIF, CMYK, palette, 16-bit, transparent, animated) becomes an
RGB image; decoding.py does that. Pixels are normalised with CLIP's mean and standard deviation, as
the released models were trained with.

Two resizers. "resize" goes through Pillow, as transformers' BlipImageProcessor does, so that pixels
of an export's proof and of evaluation equal those that other programs feed. Everything else goes
through torch's resizer for bytes: the same bicubic filter with antialiasing, at most one level from
Pillow's, several times as fast.
"""

import stat
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
import simplejpeg
import torch
from PIL import Image

from ibtrain.data.decoding import (
    DAMAGE,
    MAXIMUM_PIXELS,
    Levels,
    decode,
    image_size,
    is_plain_jpeg,
    is_plain_png,
    open_header,
    orientation,
    to_rgb,
)
from ibtrain.defaults import SHORT_SIDE
from ibtrain.files import FileError, check_not_pointer

__all__ = [
    "DAMAGE",
    "MAXIMUM_PIXELS",
    "Augmentation",
    "encode_jpeg",
    "image_size",
    "open_pixels",
    "reencode",
    "to_rgb",
]

Augmentation = Literal["resize", "crop", "crop_flip"]
QUALITY = 90
MAXIMUM_FILE_BYTES = 1 << 28
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CROP_SHARE = (0.5, 1.0)  # of the area, as the original's random resized crop
CROP_RATIO = (3 / 4, 4 / 3)
_LONGEST_JPEG_SIDE = 65_500  # libjpeg's limit
_SPARE_BYTES = 1 << 16
# level / 255, minus the mean, over the standard deviation; as one product and one sum
_FACTOR_311 = torch.tensor([1 / (255 * std) for std in CLIP_STD]).view(3, 1, 1)
_OFFSET_311 = torch.tensor(
    [-mean / std for mean, std in zip(CLIP_MEAN, CLIP_STD, strict=True)]
).view(3, 1, 1)


def reencode(
    path: Path, short_side: int = SHORT_SIDE, quality: int = QUALITY, keep_original: bool = False
) -> bytes:
    """The image as it goes into a shard: an RGB JPEG whose short side is at most `short_side`.

    An RGB JPEG that needs no change is returned byte for byte, after it was decoded once. With
    `keep_original` the size is left alone, and PNG too is returned byte for byte.

    Args:
        path: an image in one of decoding.py's formats; the first frame of an animated one.
        short_side: pixels.
        quality: of the JPEG written, 1 to 95.
        keep_original: never reduce the size.

    Raises:
        ValueError: the file is damaged or cut off, no image, or of absurd size; naming it.
    """
    try:
        data = _read(path)
        header = open_header(data)
        turn = orientation(header)
        limit = max(header.size) if keep_original else short_side
        unchanged = (
            turn == 1
            and min(header.size) <= limit
            and len(data) <= 3 * header.width * header.height + _SPARE_BYTES
            and (is_plain_jpeg(header) or (keep_original and is_plain_png(header)))
        )
        # Decoding at a half, a quarter or an eighth leaves twice what is wanted to the resizer.
        levels = decode(data, header, at_least=0 if unchanged else 2 * limit, turn=turn)
        return data if unchanged else encode_jpeg(levels, limit, quality)
    except DAMAGE as error:
        raise ValueError(f"{path}: not a readable image: {what_it_is(path) or error}") from error


def what_it_is(path: Path) -> str:
    """What a file that is no image and no video is, in a sentence, where that can be told: a failed
    download in most cases.
    """
    if not path.is_file():  # a pipe would be waited for
        return ""
    try:
        check_not_pointer(path)
        with path.open("rb") as file:
            begin = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    except FileError:
        return (
            "it is a pointer of Git LFS, not the file that it stands for; run `git lfs pull` in "
            "its clone, or download the file itself"
        )
    except OSError:
        return ""
    if not begin:
        return "it is empty; fetch it again"
    if begin.startswith((b"<!doctype html", b"<html")):
        return "it is a web page, as servers send it in a file's stead; fetch it again"
    if begin.startswith((b"<svg", b"<?xml")):
        return "it is XML (a drawing in SVG?), not pixels; convert it to PNG or JPEG"
    if begin[4:12] in (b"ftypavif", b"ftypheic", b"ftypheix", b"ftypmif1"):
        return "it is AVIF or HEIC, which is not read; convert it to PNG or JPEG"
    return ""


def _read(path: Path) -> bytes:
    """The bytes of a plain file (a pipe would be waited for) of at most MAXIMUM_FILE_BYTES."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("no plain file")
    if found.st_size > MAXIMUM_FILE_BYTES:
        raise ValueError(f"{found.st_size} bytes, more than the {MAXIMUM_FILE_BYTES} allowed")
    return path.read_bytes()


def encode_jpeg(
    picture: Levels | Image.Image, short_side: int | None = SHORT_SIDE, quality: int = QUALITY
) -> bytes:
    """A JPEG (4:2:0) of a picture, reduced to `short_side` pixels if it is larger.

    Args:
        picture: uint8 [H, W, 3], or an image of any mode.
        short_side: pixels; None leaves the size alone.
        quality: 1 to 95.

    Raises:
        ValueError: a side is longer than a JPEG can be.
    """
    levels = np.array(to_rgb(picture)) if isinstance(picture, Image.Image) else picture
    height, width = levels.shape[:2]
    if short_side is not None and min(height, width) > short_side:
        scale = short_side / min(height, width)
        resized_CHW = _resized(levels, round(height * scale), round(width * scale))
        levels = resized_CHW.permute(1, 2, 0).numpy()
    if max(levels.shape) > _LONGEST_JPEG_SIDE:
        raise ValueError(f"{width} x {height} pixels, longer than a JPEG can be")
    data: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(levels), quality, colorspace="RGB", colorsubsampling="420"
    )
    return data


def _resized(levels: Levels, height: int, width: int) -> torch.Tensor:
    """uint8 [3, height, width], channels last; bicubic, antialiased where it shrinks."""
    # The batch comes first and channels stay last in memory: torch then has its fastest way.
    source_1CHW = torch.from_numpy(levels)[None].permute(0, 3, 1, 2)
    target_1CHW = torch.nn.functional.interpolate(
        source_1CHW, size=(height, width), mode="bicubic", antialias=True
    )
    return target_1CHW[0]


def open_pixels(data: bytes, size: int, augmentation: Augmentation, random: Random) -> torch.Tensor:
    """Decodes, resizes and normalises an image.

    "resize" squashes it to the square, bicubic, as transformers' BlipImageProcessor does; "crop"
    takes a random part of 50 to 100 % of the area; "crop_flip" also mirrors every other one.

    Args:
        data: an encoded image.
        size: pixels of both sides.
        augmentation: see above.
        random: gives crop and flip; "resize" draws nothing from it.

    Returns:
        fp32 [3, size, size].

    Raises:
        ValueError: the data is damaged, no image, or of more than MAXIMUM_PIXELS.
    """
    try:
        header = open_header(data)
        if augmentation == "resize":
            squashed = Image.fromarray(decode(data, header)).resize(
                (size, size), Image.Resampling.BICUBIC
            )
            square_CHW = torch.from_numpy(np.array(squashed)).permute(2, 0, 1)
        else:
            square_CHW = _crop(data, header, size, random)
    except DAMAGE as error:
        raise ValueError(f"not a readable image: {error}") from error
    if augmentation == "crop_flip" and random.random() < 0.5:
        square_CHW = square_CHW.flip(2)
    return torch.empty(3, size, size).copy_(square_CHW).mul_(_FACTOR_311).add_(_OFFSET_311)


def _crop(data: bytes, header: Image.Image, size: int, random: Random) -> torch.Tensor:
    """A random part, uint8 [3, size, size], decoded at a scale that leaves enough of it."""
    left, top, width, height = _crop_box(header.width, header.height, random)
    reduction = max(1, min(width, height) // size)
    levels = decode(data, header, at_least=-(-min(header.size) // reduction))
    down, across = levels.shape[0] / header.height, levels.shape[1] / header.width
    rows = slice(round(top * down), max(round((top + height) * down), round(top * down) + 1))
    columns = slice(
        round(left * across), max(round((left + width) * across), round(left * across) + 1)
    )
    return _resized(levels[rows, columns], size, size)


def _crop_box(width: int, height: int, random: Random) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a random part; the whole where ten draws do not fit."""
    for _ in range(10):
        area = width * height * random.uniform(*CROP_SHARE)
        ratio = float(np.exp(random.uniform(*np.log(CROP_RATIO))))
        across, down = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < across <= width and 0 < down <= height:
            return random.randint(0, width - across), random.randint(0, height - down), across, down
    return 0, 0, width, height
