"""Videos: a few uniformly sampled frames of a video file, or of a folder of its frames.

The video is cut into as many segments of equal length as frames are wanted, and the frame shown in
the middle of each is taken. The paper (section 2.5) takes four.

A file is read twice: once without decoding, for the times of its packets and which of them are key
frames; then only what leads from a key frame to a wanted frame is decoded. Nothing depends on how a
container seeks, so the same file always gives the same frames.
"""

import functools
import re
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

from ibtrain.data.images import to_rgb, what_it_is
from ibtrain.defaults import FRAMES

if TYPE_CHECKING:
    import av

MAXIMUM_COUNT = 64
MAXIMUM_FRAME_PIXELS = 7680 * 4320
MAXIMUM_DECODED_PIXELS = 1 << 33  # of one video: four minutes of 1280 x 720 at 38 frames a second
MAXIMUM_PACKETS = 1 << 19  # of one video: five hours at 29 frames a second
MAXIMUM_FILES = 1 << 19  # in a folder of frames
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# Containers of single files. Playlists and the like, which name other files, are not among them.
_CONTAINERS = "mov,mp4,avi,matroska,webm,mpeg,mpegts,flv,asf,ogg"
_OPTIONS = {
    "format_whitelist": _CONTAINERS,
    "protocol_whitelist": "file",
    "max_pixels": str(MAXIMUM_FRAME_PIXELS),
}
_FILE_DAMAGE = (OSError, EOFError, ValueError, SyntaxError)
_TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}


@functools.cache
def _av() -> Any:
    """PyAV, loaded with the first video: images are prepared without it.

    Raises:
        RuntimeError: when it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise RuntimeError(
            f"a video cannot be decoded, for PyAV cannot be imported ({error}); pip install av"
        ) from error
    return av


@functools.cache
def _tolerant() -> dict[str, str]:
    """What makes PyAV open a video whose title is not in UTF-8: 19 does so of itself, and refuses
    to be told.
    """
    major = int(_av().__version__.partition(".")[0])
    return {} if major >= 19 else {"metadata_errors": "replace"}


def _damage() -> tuple[type[Exception], ...]:
    return (_av().FFmpegError, *_FILE_DAMAGE)


def frames(path: Path, count: int = FRAMES) -> tuple[Image.Image, ...]:
    """Frames from the middle of `count` equal segments of a video, in order and upright.

    Where there are fewer frames than `count`, some are given several times.

    Args:
        path: a video file, or a folder of frames, which follow each other in the natural order of
            their names (2.jpg before 10.jpg).
        count: 1 to MAXIMUM_COUNT.

    Returns:
        `count` RGB images.

    Raises:
        ValueError: the file is damaged, cut off, no video or too large, or the folder holds no
            frames; the path is named.
    """
    if path.is_dir():
        return tuple(_image(file) for file in frame_files(path, count))
    _check_count(count)
    try:
        packets = _Packets.of(path)
        return tuple(_decoded(path, packets, packets.middles(count)))
    except _damage() as error:
        said = what_it_is(path) or _sentence(error)
        raise ValueError(f"{path}: not a readable video: {said}") from error


def frame_files(directory: Path, count: int = FRAMES) -> tuple[Path, ...]:
    """The image files in a folder from the middle of `count` equal segments, in natural order.

    Raises:
        ValueError: the folder holds no image, or more than MAXIMUM_FILES files.
    """
    _check_count(count)
    try:
        files = list(islice(directory.iterdir(), MAXIMUM_FILES + 1))
    except OSError as error:
        raise ValueError(f"{directory}: cannot be read: {error.strerror}") from error
    if len(files) > MAXIMUM_FILES:
        raise ValueError(f"{directory}: holds more than {MAXIMUM_FILES} files")
    named = [
        file
        for file in files
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    ]
    if not named:
        raise ValueError(f"{directory}: holds no frames ({', '.join(IMAGE_SUFFIXES)})")
    named.sort(key=lambda file: _natural(file.name))
    return tuple(named[(2 * index + 1) * len(named) // (2 * count)] for index in range(count))


def _check_count(count: int) -> None:
    if not 1 <= count <= MAXIMUM_COUNT:
        raise ValueError(f"{count} frames were asked for; 1 to {MAXIMUM_COUNT} can be had")


def _natural(name: str) -> tuple[tuple[tuple[int, str], ...], str]:
    """A key that orders the numbers in names by value; equal values by the name itself."""
    parts = re.split(r"([0-9]+)", name.lower())
    # The digits without leading zeros, shorter first: int() refuses thousands of digits.
    key = tuple(
        (len(part.lstrip("0")) if index % 2 else 0, part.lstrip("0") if index % 2 else part)
        for index, part in enumerate(parts)
    )
    return key, name


def _image(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAXIMUM_FRAME_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            return to_rgb(ImageOps.exif_transpose(image)).copy()
    except (*_FILE_DAMAGE, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable image: {error}") from error


def _sentence(error: BaseException) -> str:
    """FFmpeg's own words without its number and the path; those of others as they are."""
    text = error.strerror if isinstance(error, _av().FFmpegError) else str(error)
    return " ".join(str(text).split())[:200]


@contextmanager
def _opened(path: Path) -> Iterator["tuple[av.container.InputContainer, av.VideoStream]"]:
    """The container and its first stream of moving pictures, to be decoded in this thread."""
    with _av().open(str(path.absolute()), options=dict(_OPTIONS), **_tolerant()) as container:
        for stream in container.streams.video:
            if not stream.disposition & _av().stream.Disposition.attached_pic:
                break
        else:
            raise ValueError("it holds no moving pictures")
        context = stream.codec_context
        if context is None:
            raise ValueError("its pictures are in an unknown encoding")
        if context.width * context.height > MAXIMUM_FRAME_PIXELS:
            raise ValueError(f"{context.width} x {context.height} pixels are too many")
        context.options = {"max_pixels": str(MAXIMUM_FRAME_PIXELS)}
        context.thread_count = 1
        yield container, stream


@dataclass(frozen=True)
class _Wanted:
    """A frame by its time, and the packet from which on it can be decoded."""

    time: int
    start: int


@dataclass(frozen=True)
class _Packet:
    """What the first reading keeps of a packet; times are in the stream's units."""

    time: int
    duration: int
    is_key: bool
    is_shown: bool


@dataclass(frozen=True)
class _Packets:
    """The packets of a video in the order of decoding.

    Where the times are no use they are numbers that count the frames, and `counted` is true.
    """

    packets: tuple[_Packet, ...]
    counted: bool

    @classmethod
    def of(cls, path: Path) -> "_Packets":
        """Reads the packets; raises what PyAV does, or ValueError."""
        packets = []
        with _opened(path) as (container, stream):
            counted = container.format.name == "avi"  # it holds no times, and FFmpeg's guesses err
            for packet in _filled(container, stream):
                counted = counted or packet.pts is None
                shown = not packet.is_discard
                packets.append(
                    _Packet(packet.pts or 0, packet.duration or 0, packet.is_keyframe, shown)
                )
                if len(packets) > MAXIMUM_PACKETS:
                    raise ValueError(f"it has more than {MAXIMUM_PACKETS} frames")
            _check_whole(container, stream, packets)
        if counted:
            packets = [replace(packet, time=n, duration=1) for n, packet in enumerate(packets)]
        return cls(tuple(packets), counted)

    def middles(self, count: int) -> list[_Wanted]:
        """The frames that are shown in the middle of `count` equal segments."""
        order = sorted(
            (packet.time, index) for index, packet in enumerate(self.packets) if packet.is_shown
        )
        if not order:
            raise ValueError("it shows no frame")
        times = [time for time, _ in order]
        first, last = times[0], times[-1]
        step = self.packets[order[-1][1]].duration or max(1, (last - first) // len(times))
        wanted = []
        for segment in range(count):
            middle = first + (2 * segment + 1) * (last + step - first) // (2 * count)
            time, index = order[max(0, bisect_right(times, middle) - 1)]
            wanted.append(_Wanted(time, 0 if self.counted else self._start(time, index)))
        return wanted

    def _start(self, time: int, index: int) -> int:
        """The last key frame that comes no later than the frame, both decoded and shown."""
        for start in range(index, -1, -1):
            if self.packets[start].is_key and self.packets[start].time <= time:
                return start
        return 0


def _filled(
    container: "av.container.InputContainer", stream: "av.VideoStream"
) -> Iterator["av.Packet"]:
    """The packets with something in them: an empty one would end the decoding."""
    return (packet for packet in container.demux(stream) if packet.size)


def _check_whole(
    container: "av.container.InputContainer", stream: "av.VideoStream", packets: list[_Packet]
) -> None:
    """ValueError where the header promises clearly more than the file holds."""
    if not packets:
        raise ValueError("it holds no frames")
    if len(packets) < 0.9 * stream.frames:
        raise ValueError(f"it is cut off: {len(packets)} of {stream.frames} frames are there")
    if not stream.frames and container.duration and stream.time_base:
        seconds = float((max(packet.time for packet in packets)) * stream.time_base)
        promised = container.duration / _av().time_base
        if seconds < 0.5 * promised - 1:
            raise ValueError(f"it is cut off: it ends at {seconds:.1f} of {promised:.1f} seconds")


def _decoded(path: Path, packets: _Packets, wanted: list[_Wanted]) -> Iterator[Image.Image]:
    """The wanted frames, given in the order of their times."""
    left = deque(wanted)
    before: av.VideoFrame | None = None
    for time, frame in _frames_from(path, packets.counted, left):
        while left and time >= left[0].time:
            # A frame that the decoder left out is stood for by the one before it.
            exact = time == left[0].time or before is None
            yield _upright(frame if exact else before)
            left.popleft()
        before = frame
        if not left:
            return
    if before is None:
        raise ValueError("no frame can be decoded")
    for _ in range(len(left)):
        yield _upright(before)


def _frames_from(
    path: Path, counted: bool, left: deque[_Wanted]
) -> Iterator["tuple[int, av.VideoFrame]"]:
    """(time, frame) from the key frame before the first of `left` on; again when that is taken."""
    pixels = 0
    number = -1
    with _opened(path) as (container, stream):
        context = stream.codec_context
        feeding = False
        for position, packet in enumerate(chain(_filled(container, stream), [None])):
            if packet is not None and not feeding and position < left[0].start:
                continue
            feeding = True
            for frame in context.decode(packet):
                pixels += frame.width * frame.height
                if pixels > MAXIMUM_DECODED_PIXELS:
                    raise ValueError(
                        f"its key frames are too far apart: more than {MAXIMUM_DECODED_PIXELS} "
                        "pixels would have to be decoded; write it anew, smaller"
                    )
                number += 1
                time = number if counted else frame.pts
                if time is not None:
                    yield time, frame
                if not left:
                    return
            if left[0].start > position + 1:
                context.flush_buffers()
                feeding = False


def _upright(frame: "av.VideoFrame") -> Image.Image:
    if frame.is_corrupt:
        raise ValueError("a frame of it is damaged")
    image: Image.Image = frame.to_image()
    turn = _TURNS.get(round(frame.rotation) % 360)
    return image if turn is None else image.transpose(turn)
