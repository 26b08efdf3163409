"""Encoded images to RGB levels: every mode and orientation, nothing that is damaged or absurd.

Pillow reads the header and says what an image is. A plain JPEG is then decoded by libjpeg-turbo
alone (simplejpeg), which gives the same levels bit for bit, can decode at a half, a quarter or an
eighth of the size, and reports what Pillow passes over. Everything else Pillow decodes.
"""

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

Levels = npt.NDArray[np.uint8]
MAXIMUM_PIXELS = 89_478_485  # Pillow's own limit, above which it speaks of a decompression bomb
# Nothing that runs another program (EPS) or is a container of vector drawings (WMF).
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    ArithmeticError,
    TypeError,
    AttributeError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What decoders raise over damaged data."""
_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_header(data: bytes) -> Image.Image:
    """The image, not yet decoded.

    Raises:
        ValueError: it has more than MAXIMUM_PIXELS, or none.
        Exception: one of DAMAGE, where it is no image of FORMATS.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:  # whose own words name an address in memory
        raise ValueError(f"it is none of {', '.join(FORMATS)}") from error
    if image.width * image.height > MAXIMUM_PIXELS:
        raise ValueError(
            f"{image.width} x {image.height} pixels, more than the {MAXIMUM_PIXELS} allowed"
        )
    return image


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height of an encoded image in pixels; one of DAMAGE where it is none."""
    return open_header(data).size


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 (upright) where there is none, or EXIF data that is damaged."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except DAMAGE:
        return 1
    return value if value in _TURNS else 1


def is_plain_jpeg(image: Image.Image) -> bool:
    """Whether it is an RGB JPEG of one picture."""
    return image.mode == "RGB" and image.format == "JPEG"


def is_plain_png(image: Image.Image) -> bool:
    """Whether it is an RGB PNG without transparency or animation."""
    return (
        image.mode == "RGB"
        and image.format == "PNG"
        and getattr(image, "n_frames", 1) == 1
        and "transparency" not in image.info
    )


def decode(data: bytes, header: Image.Image, at_least: int = 0, turn: int = 1) -> Levels:
    """The levels of an encoded image, uint8 [H, W, 3].

    Args:
        data: the encoded image.
        header: as `open_header` gave it for this data; used up.
        at_least: a JPEG may be decoded at a half, a quarter or an eighth of its size, whichever
            leaves its short side this long; 0 for the full size.
        turn: EXIF's orientation, which is undone.

    Raises:
        Exception: one of DAMAGE, where the data is damaged or cut off.
    """
    levels = None
    if header.format in ("JPEG", "MPO") and header.mode in ("RGB", "L"):
        levels = _decode_jpeg(data, at_least)
    if levels is None:
        header.seek(0)
        header.load()
        # TIFF turns itself upright when it is loaded
        turn = 1 if header.format == "TIFF" else turn
        levels = np.array(to_rgb(header))
    if turn == 1:
        return levels
    return np.array(Image.fromarray(levels).transpose(_TURNS[turn]))


def _decode_jpeg(data: bytes, at_least: int) -> Levels | None:
    """None where libjpeg finds fault with a JPEG that Pillow may still accept."""
    try:
        levels: Levels = simplejpeg.decode_jpeg(
            data,
            colorspace="RGB",
            min_height=at_least,
            min_width=at_least,
            # The other eighths are decoded without vector instructions, slower than the whole.
            min_factor=2 if at_least else 1,
        )
    except ValueError as error:
        if "remature end" in str(error):  # what follows would be grey, which Pillow passes over
            raise ValueError("the JPEG data ends early") from error
        return None
    return levels


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB of any mode: transparency over white, 16-bit scaled down to 8."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        levels = np.nan_to_num(np.asarray(image).astype(np.float64))
        # I;16 is of 16 bits; I and F do not say, so it is seen by the levels
        if image.mode.startswith("I;16") or (levels.size and levels.max() > 255):
            levels = levels / 257  # 65535 becomes 255
        image = Image.fromarray(levels.clip(0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
