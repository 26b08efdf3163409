"""Images: once into shards (`reencode`), and at every reading into pixels (`open_pixels`).

Whatever a dataset brings (rotated by EXIF, CMYK, palette, 16-bit, transparent, animated) becomes an
RGB image. Pixels are normalised with CLIP's mean and standard deviation, as the released models
were trained with.
"""

import io
import struct
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps

Augmentation = Literal["resize", "crop", "crop_flip"]
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MAXIMUM_PIXELS = 89_478_485  # Pillow's own limit, above which it speaks of a decompression bomb
CROP_SHARE = (0.5, 1.0)  # of the area, as the original's random resized crop
CROP_RATIO = (3 / 4, 4 / 3)
_EXIF_ORIENTATION = 0x0112
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    KeyError,
    IndexError,
    OverflowError,
    struct.error,
    Image.DecompressionBombError,
)


def reencode(
    path: Path, short_side: int = 288, quality: int = 90, keep_original: bool = False
) -> bytes:
    """The image as it goes into a shard: an RGB JPEG whose short side is at most `short_side`.

    An RGB JPEG that needs no change is returned byte for byte, after it was decoded once. With
    `keep_original` the size is left alone, and PNG too is returned byte for byte.

    Args:
        path: an image in any format that Pillow reads; the first frame of an animated one.
        short_side: pixels.
        quality: of the JPEG written, 1 to 95.
        keep_original: never reduce the size.

    Raises:
        ValueError: the file is damaged, no image, or of more than MAXIMUM_PIXELS.
    """
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            _check_size(image.width, image.height)
            limit = max(image.size) if keep_original else short_side
            if _needs_no_change(image, limit, keep_original):
                image.load()
                return data
            if image.format == "JPEG" and min(image.size) >= 4 * limit:
                image.draft(None, (2 * limit, 2 * limit))
            upright = to_rgb(ImageOps.exif_transpose(image))
    except _DAMAGE as error:
        raise ValueError(f"{path}: not a readable image: {error}") from error
    if min(upright.size) > limit:
        scale = limit / min(upright.size)
        size = (round(upright.width * scale), round(upright.height * scale))
        upright = upright.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    upright.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _check_size(width: int, height: int) -> None:
    if width * height > MAXIMUM_PIXELS:
        raise ValueError(f"{width} x {height} pixels, more than the {MAXIMUM_PIXELS} allowed")


def _needs_no_change(image: Image.Image, limit: int, keep_original: bool) -> bool:
    return (
        image.mode == "RGB"
        and (image.format == "JPEG" or (keep_original and image.format == "PNG"))
        and min(image.size) <= limit
        and getattr(image, "n_frames", 1) == 1
        and "transparency" not in image.info
        and image.getexif().get(_EXIF_ORIENTATION, 1) == 1
    )


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB of any mode: transparency over white, 16-bit scaled down to 8."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        levels = np.asarray(image).astype(np.float64)
        if levels.size and levels.max() > 255:
            levels = levels / 257  # 65535 becomes 255
        image = Image.fromarray(levels.clip(0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


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
        with Image.open(io.BytesIO(data)) as image:
            _check_size(image.width, image.height)
            if augmentation == "resize":
                square = to_rgb(image).resize((size, size), Image.Resampling.BICUBIC)
            else:
                square = _crop(image, size, random)
    except _DAMAGE as error:
        raise ValueError(f"not a readable image: {error}") from error
    if augmentation == "crop_flip" and random.random() < 0.5:
        square = ImageOps.mirror(square)
    return _normalised(square)


def _crop(image: Image.Image, size: int, random: Random) -> Image.Image:
    left, top, width, height = _crop_box(image.width, image.height, random)
    # a JPEG decodes faster at 1/2, 1/4 or 1/8; the crop must keep at least `size` pixels
    reduction = min(width, height) // size
    full_width, full_height = image.size
    if image.format == "JPEG" and reduction >= 2:
        image.draft(None, (full_width // reduction, full_height // reduction))
    across, down = image.width / full_width, image.height / full_height
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    return to_rgb(image).resize((size, size), Image.Resampling.BICUBIC, box=box)


def _crop_box(width: int, height: int, random: Random) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a random part; the whole where ten draws do not fit."""
    for _ in range(10):
        area = width * height * random.uniform(*CROP_SHARE)
        ratio = float(np.exp(random.uniform(*np.log(CROP_RATIO))))
        across, down = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < across <= width and 0 < down <= height:
            return random.randint(0, width - across), random.randint(0, height - down), across, down
    return 0, 0, width, height


def _normalised(image: Image.Image) -> torch.Tensor:
    levels_HWC = np.asarray(image).astype(np.float32)
    mean = np.array(CLIP_MEAN, np.float32)
    std = np.array(CLIP_STD, np.float32)
    pixels_HWC = (levels_HWC * np.float32(1 / 255) - mean) / std
    return torch.from_numpy(np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1)))
