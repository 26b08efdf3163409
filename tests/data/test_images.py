import io
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BlipImageProcessor

from ibtrain.data import images
from ibtrain.data.images import open_pixels, reencode


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
    monkeypatch.setattr(images, "MAXIMUM_PIXELS", 1000)
    path = tmp_path / "bomb.png"
    noise(50, 40).save(path)
    with pytest.raises(ValueError, match="more than the 1000 allowed"):
        reencode(path)
    with pytest.raises(ValueError, match="more than the 1000 allowed"):
        open_pixels(path.read_bytes(), 32, "crop", Random(0))
