import io
import os
import struct
import zlib
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from ibtrain.data import decoding, images
from ibtrain.data.images import open_pixels, reencode

try:  # transformers 5 has two; that of the plain name resizes with torchvision
    from transformers import BlipImageProcessorPil as BlipImageProcessor
except ImportError:
    from transformers import BlipImageProcessor


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels).convert(mode)


def encoded(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize("size", [48, 224])
@pytest.mark.parametrize("form", [(48, 48), (640, 480), (300, 288), (30, 20), (1500, 1200)])
def test_resize_equals_the_processor_of_transformers(size: int, form: tuple[int, int]):
    data = encoded(noise(*form), quality=95)
    processor = BlipImageProcessor(size={"height": size, "width": size})
    expected = processor(opened(data), return_tensors="pt").pixel_values[0]
    found = open_pixels(data, size, "resize", Random(0))
    assert found.shape == (3, size, size) and found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-6


def test_crops_are_a_function_of_the_random_generator():
    data = encoded(noise(200, 100))
    first, same, other = (open_pixels(data, 32, "crop", Random(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)
    draws = [open_pixels(data, 32, "crop_flip", Random(seed)) for seed in range(20)]
    plain = [open_pixels(data, 32, "crop", Random(seed)) for seed in range(20)]
    flipped = [not torch.equal(a, b) for a, b in zip(draws, plain, strict=True)]
    assert 3 < sum(flipped) < 17
    for drawn, whole, flip in zip(draws, plain, flipped, strict=True):
        assert torch.equal(drawn.flip(2) if flip else drawn, whole)


def test_a_large_image_is_cropped_at_reduced_scale_and_looks_the_same():
    gradient = np.linspace(0, 255, 1600, dtype=np.uint8)[None, :, None].repeat(1600, 0).repeat(3, 2)
    large = Image.fromarray(gradient)
    reduced = open_pixels(encoded(large, quality=95), 64, "crop", Random(3))
    exact = open_pixels(encoded(large, "PNG"), 64, "crop", Random(3))
    assert (reduced - exact).abs().mean() < 0.05


def test_an_image_that_needs_no_change_passes_byte_for_byte(tmp_path: Path):
    data = encoded(noise(300, 200), quality=71)
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    assert reencode(path) == data
    assert reencode(path, short_side=200) == data
    assert opened(reencode(path, short_side=100)).size == (150, 100)
    assert reencode(path, short_side=100, keep_original=True) == data


def test_rotation_is_applied(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 20, 20))
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    upright = opened(reencode(tmp_path / "a.jpg"))
    assert upright.size == (20, 40) and upright.getexif().get(0x0112, 1) == 1
    top = upright.getpixel((10, 5))
    assert isinstance(top, tuple) and top[2] > 200 > 60 > top[0]


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "1", "LA", "RGBA", "PA"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str):
    path = tmp_path / ("a.tiff" if mode in ("CMYK", "PA") else "a.png")
    noise(30, 20, "RGBA" if mode == "PA" else mode).save(path)
    image = opened(reencode(path))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (30, 20))


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path: Path):
    levels = np.full((20, 30), 32896, dtype=np.uint16)  # 128 * 257
    Image.fromarray(levels).save(tmp_path / "a.png")
    assert opened(reencode(tmp_path / "a.png")).getpixel((5, 5)) == (128, 128, 128)


def test_transparency_stands_over_white(tmp_path: Path):
    Image.new("RGBA", (30, 20), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert opened(reencode(tmp_path / "a.png")).getpixel((5, 5)) == (255, 255, 255)


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path):
    frames = [Image.new("RGB", (30, 20), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    pixel = opened(reencode(tmp_path / "a.gif")).getpixel((5, 5))
    assert isinstance(pixel, tuple) and pixel[0] > 240 and pixel[2] < 20


def test_damage_is_a_value_error_naming_the_file(tmp_path: Path):
    whole = encoded(noise(200, 200))
    for name, data in (("empty", b""), ("text", b"hello"), ("cut", whole[: len(whole) // 2])):
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name}\.jpg: not a readable image"):
            reencode(path)
        with pytest.raises(ValueError, match="not a readable image"):
            open_pixels(data, 32, "resize", Random(0))


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decoding, "MAXIMUM_PIXELS", 1000)
    path = tmp_path / "bomb.png"
    noise(50, 40).save(path)
    with pytest.raises(ValueError, match="more than the 1000 allowed"):
        reencode(path)
    with pytest.raises(ValueError, match="more than the 1000 allowed"):
        open_pixels(path.read_bytes(), 32, "crop", Random(0))


def photo(width: int, height: int) -> Image.Image:
    """Smooth waves with a little grain: as much detail as a photograph has."""
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    waves = [np.sin(across / (9 + c) + down / 23) + np.cos(down / (13 - c)) for c in range(3)]
    grain = np.random.default_rng(0).normal(size=(height, width, 1)) * 4
    levels = 128 + 50 * np.stack(waves, -1) + grain
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_decodes_as_with_pillow_bit_for_bit(subsampling: int, mode: str, progressive: bool):
    options = {} if mode == "L" else {"subsampling": subsampling}
    data = encoded(photo(203, 151).convert(mode), progressive=progressive, **options)
    found = decoding.decode(data, decoding.open_header(data))
    assert np.array_equal(found, np.asarray(opened(data).convert("RGB")))


@pytest.mark.parametrize("size", [(640, 480), (500, 333), (2000, 1500), (289, 700)])
def test_reencoding_loses_no_more_than_the_plain_way(tmp_path: Path, size: tuple[int, int]):
    path = tmp_path / "a.jpg"
    photo(*size).save(path, quality=92)
    found = np.asarray(opened(reencode(path)), np.int16)
    scale = 288 / min(size)
    wanted = (round(size[0] * scale), round(size[1] * scale))
    exact = Image.open(path).resize(wanted, Image.Resampling.BICUBIC)
    plain = np.asarray(opened(encoded(exact, quality=90)), np.int16)
    assert found.shape == (wanted[1], wanted[0], 3)
    # libjpeg-turbo's encoder rounds otherwise than Pillow asks it to, and an image of four times
    # the size is averaged by halves first.
    assert np.abs(found - plain).mean() < 1.5 and np.abs(found - plain).max() <= 16
    lost = [np.abs(levels - np.asarray(exact, np.int16)).mean() for levels in (found, plain)]
    assert lost[0] < lost[1] * (1.02 if min(size) < 4 * 288 else 1.3)


@pytest.mark.parametrize("form", [(640, 480), (288, 384), (30, 20), (1500, 1200)])
def test_crops_equal_the_same_box_through_pillow(form: tuple[int, int]):
    data = encoded(photo(*form), quality=95)
    found = open_pixels(data, 224, "crop", Random(5))
    left, top, width, height = images._crop_box(*form, Random(5))
    box = opened(data).crop((left, top, left + width, top + height))
    expected = open_pixels(
        encoded(box.resize((224, 224), Image.Resampling.BICUBIC), "PNG"), 224, "resize", Random(0)
    )
    error = (found - expected).abs() * 69  # in levels: one is 1 / 69 at most
    # Twice as large or more, it is decoded at a half: the grain is averaged otherwise.
    assert error.mean() < (0.02 if min(width, height) < 448 else 4)
    assert error.max() < (1.1 if min(width, height) < 448 else 20)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_is_undone(tmp_path: Path, form: str, orientation: int):
    corners = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    image = Image.new("RGB", (64, 32))
    for color, place in zip(corners, ((0, 0), (32, 0), (0, 16), (32, 16)), strict=True):
        image.paste(color, (*place, place[0] + 32, place[1] + 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{form.lower()}"
    options = {"lossless": True} if form == "WEBP" else {}
    image.save(path, form, exif=exif, **options)
    # Where EXIF's standard says that row 0 and column 0 are to be seen.
    seen = {
        1: (0, 1, 2, 3),
        2: (1, 0, 3, 2),
        3: (3, 2, 1, 0),
        4: (2, 3, 0, 1),
        5: (0, 2, 1, 3),
        6: (2, 0, 3, 1),
        7: (3, 1, 2, 0),
        8: (1, 3, 0, 2),
    }[orientation]
    upright = opened(reencode(path))
    assert upright.size == ((32, 64) if orientation > 4 else (64, 32))
    width, height = upright.size
    places = [(x, y) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
    for place, corner in zip(places, seen, strict=True):
        found = upright.getpixel(place)
        assert isinstance(found, tuple)
        assert max(abs(a - b) for a, b in zip(found, corners[corner], strict=True)) < 25


def test_damaged_exif_data_does_not_cost_the_image(tmp_path: Path):
    path = tmp_path / "a.jpg"
    noise(30, 20).save(path, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + bytes(20))
    assert opened(reencode(path)).size == (30, 20)


@pytest.mark.parametrize("form", ["gif", "webp", "png"])
def test_the_first_frame_of_every_animation_is_taken(tmp_path: Path, form: str):
    frames = [Image.new("RGB", (30, 20), color) for color in ("red", "blue", "lime")]
    path = tmp_path / f"a.{form}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    for keep in (False, True):
        image = opened(reencode(path, keep_original=keep))
        pixel = image.getpixel((5, 5))
        assert image.format == "JPEG" and isinstance(pixel, tuple)
        assert pixel[0] > 240 and pixel[2] < 20


def test_a_dark_image_of_sixteen_bits_stays_dark(tmp_path: Path):
    Image.fromarray(np.full((20, 30), 200, dtype=np.uint16)).save(tmp_path / "a.png")
    assert opened(reencode(tmp_path / "a.png")).getpixel((5, 5)) == (1, 1, 1)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_was_cut_and_closed_again_is_refused(tmp_path: Path, progressive: bool):
    whole = encoded(noise(200, 200), progressive=progressive)
    path = tmp_path / "a.jpg"
    path.write_bytes(whole[: len(whole) // 2] + b"\xff\xd9")
    with pytest.raises(ValueError, match=r"a\.jpg: not a readable image: the JPEG data ends early"):
        reencode(path)


@pytest.mark.parametrize("form", ["PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_truncated_file_of_any_format_is_refused(tmp_path: Path, form: str):
    whole = encoded(noise(100, 100), form)
    path = tmp_path / "a"
    path.write_bytes(whole[: len(whole) // 2])
    for keep in (False, True):
        with pytest.raises(ValueError, match="not a readable image"):
            reencode(path, keep_original=keep)


def test_formats_that_run_programs_are_none_of_ours(tmp_path: Path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    with pytest.raises(ValueError, match="it is none of JPEG, PNG"):
        reencode(path)


def test_files_too_large_and_pipes_are_not_read(tmp_path: Path):
    huge = tmp_path / "huge.jpg"
    with huge.open("wb") as file:
        file.truncate(images.MAXIMUM_FILE_BYTES + 1)
    with pytest.raises(ValueError, match="more than the 268435456 allowed"):
        reencode(huge)
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ValueError, match="no plain file"):
        reencode(tmp_path / "pipe.jpg")


def test_a_png_bomb_is_refused_by_its_header(tmp_path: Path):
    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(bytes(10**6)))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rows + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(data)
    for keep in (False, True):
        with pytest.raises(ValueError, match="not a readable image"):
            reencode(tmp_path / "bomb.png", keep_original=keep)


def test_a_side_longer_than_a_jpeg_can_be_is_refused(tmp_path: Path):
    Image.new("L", (70_000, 2)).save(tmp_path / "long.png")
    with pytest.raises(ValueError, match="70000 x 2 pixels, longer than a JPEG can be"):
        reencode(tmp_path / "long.png")


def test_what_hangs_on_behind_an_image_is_not_kept(tmp_path: Path):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(noise(30, 20)) + bytes(10**6))
    assert len(reencode(path)) < 10_000
