"""A picture that somebody names, read from its file."""

from pathlib import Path


def read_picture(file: Path) -> bytes:
    """The bytes of an image file, seen to be one that can be opened.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is no picture, or so large that it may be an attack.
    """
    from PIL import Image, UnidentifiedImageError

    if not file.is_file():
        raise FileNotFoundError(f"the image {file} is not there; give the path of a picture")
    try:
        with Image.open(file):
            return file.read_bytes()
    except UnidentifiedImageError as error:
        raise ValueError(f"{file} is not a picture; give one") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{file} is too large a picture ({error}); reduce it") from error
