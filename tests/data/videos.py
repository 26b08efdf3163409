"""Small real videos whose every frame has a grey of its own."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


def grey(number: int) -> int:
    """How bright frame `number` is."""
    return 10 + 11 * number


def number_of(image: Image.Image) -> int:
    """Which frame an image is, from its brightness in the middle."""
    values = image.getpixel((image.width // 2, image.height // 2))
    assert isinstance(values, tuple)
    number = round((values[0] - 10) / 11)
    assert all(abs(value - grey(number)) < 4 for value in values), values
    return number


def write_video(
    path: Path,
    count: int,
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (64, 48),
    times: Sequence[int] | None = None,
    rotation: int = 0,
    audio_seconds: float = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """Writes `count` frames (21 at most), ten a second or at `times` (ms)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"g": "6", **(options or {})})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 8_000_000
        stream.codec_context.time_base = Fraction(1, 1000) if times else Fraction(1, 10)
        if rotation:
            stream.set_display_rotation(rotation)
        sound = container.add_stream("aac", rate=8000) if audio_seconds else None
        for number in range(count):
            pixels = np.empty((size[1], size[0], 3), np.uint8)
            pixels[:] = grey(number)
            pixels[: size[1] // 4, : size[0] // 4] = 0  # black at the top left
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = times[number] if times else number
            frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            write_sound(container, sound, audio_seconds)
    return path


def write_sound(
    container: av.container.OutputContainer, stream: av.AudioStream, seconds: float
) -> None:
    """Silence."""
    for number in range(int(seconds * 8000) // 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        frame.pts = number * 1024
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def write_frames(directory: Path, count: int, size: tuple[int, int] = (64, 48)) -> Path:
    """Writes `count` frames as 0.png, 1.png, ..., each of its own grey."""
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", size, (grey(number),) * 3).save(directory / f"{number}.png")
    return directory
