"""Frames of videos: which ones, which way up, and what is refused."""

import shutil
import subprocess
import sys
from pathlib import Path

import av
import pytest
from PIL import Image

from ibtrain.data import video
from ibtrain.data.video import frame_files, frames
from tests.data.videos import number_of, write_sound, write_video


def numbers(path: Path, count: int = 4) -> list[int]:
    return [number_of(image) for image in frames(path, count)]


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"bf": "2"}),
        ("no_b_frames.mp4", "mpeg4", {"bf": "0"}),
        (
            "open_groups.mp4",
            "libx264",
            {"x264-params": "open-gop=1:bframes=3:b-adapt=0:keyint=6:min-keyint=2:scenecut=0"},
        ),
        ("one_key_frame.mkv", "libx264", {"g": "100"}),
        ("a.webm", "libvpx-vp9", {}),
        ("a.avi", "mpeg4", {"bf": "0"}),
        ("b_frames.avi", "mpeg4", {"bf": "2"}),
        ("h264.avi", "libx264", {"bf": "2"}),
        ("a.ts", "libx264", {"bf": "2"}),
        ("a.mov", "libx264", {}),
    ],
)
def test_the_middles_of_equal_segments(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
):
    path = write_video(tmp_path / name, 20, codec=codec, options=options)
    for count in (1, 4, 7, 20, 21):
        assert numbers(path, count) == [(2 * i + 1) * 20 // (2 * count) for i in range(count)]


def test_a_frame_before_its_key_frame_is_decoded_from_the_one_before(tmp_path: Path):
    # Key frames are 0, 3, 9, 15; frame 8 is stored after key frame 9 and needs what precedes it.
    path = write_video(tmp_path / "a.mkv", 16, codec="mpeg4", options={"bf": "2"})
    with av.open(str(path)) as container:
        packets = [(packet.pts, packet.is_keyframe) for packet in container.demux(video=0)]
    assert packets.index((900, True)) < packets.index((800, False))
    assert numbers(path, 1) == [8]


def test_where_frames_last_unequally_time_decides(tmp_path: Path):
    # Frame 4 is shown from 0.4 s to 7 s; each segment lasts two seconds.
    times = [0, 100, 200, 300, 400, 7000, 7100, 7200, 7300, 7900]
    path = write_video(tmp_path / "a.mkv", 10, times=times)
    assert numbers(path) == [4, 4, 4, 5]


def test_fewer_frames_than_wanted_are_repeated(tmp_path: Path):
    assert numbers(write_video(tmp_path / "one.mp4", 1)) == [0, 0, 0, 0]
    assert numbers(write_video(tmp_path / "three.mp4", 3)) == [0, 1, 1, 2]


def test_odd_sizes_and_sound_make_no_difference(tmp_path: Path):
    path = write_video(tmp_path / "a.mkv", 20, codec="ffv1", size=(51, 37))
    assert [image.size for image in frames(path)] == [(51, 37)] * 4
    assert numbers(path) == [2, 7, 12, 17]
    assert numbers(write_video(tmp_path / "b.mp4", 20, audio_seconds=3)) == [2, 7, 12, 17]


@pytest.mark.parametrize(
    ("rotation", "size", "corner"),
    [(90, (48, 64), (2, 61)), (180, (64, 48), (61, 45)), (-90, (48, 64), (45, 2))],
)
def test_frames_are_turned_upright(
    tmp_path: Path, rotation: int, size: tuple[int, int], corner: tuple[int, int]
):
    found = frames(write_video(tmp_path / "a.mp4", 20, rotation=rotation))
    assert [image.size for image in found] == [size] * 4
    assert [number_of(image) for image in found] == [2, 7, 12, 17]
    assert all(max(image.getpixel(corner)) < 20 for image in found)  # the corner drawn black


def test_the_same_file_gives_the_same_frames(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", 20, options={"bf": "2"})
    first, second = (b"".join(image.tobytes() for image in frames(path)) for _ in range(2))
    assert first == second


def test_little_is_decoded_of_a_long_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_video(tmp_path / "a.mp4", 20, options={"g": "2", "keyint_min": "1", "bf": "0"})
    monkeypatch.setattr(video, "MAXIMUM_DECODED_PIXELS", 64 * 48 * 8)  # 8 of 18 frames
    assert numbers(path) == [2, 7, 12, 17]
    monkeypatch.setattr(video, "MAXIMUM_DECODED_PIXELS", 64 * 48 * 3)
    with pytest.raises(ValueError, match=r"a\.mp4: .* key frames are too far apart"):
        frames(path)


def test_a_folder_of_frames(tmp_path: Path):
    for number in (1, 2, 3, 10, 11, 100):
        Image.new("RGB", (8, 8), (number, 60, 200)).save(tmp_path / f"frame{number}.PNG")
    (tmp_path / ".frame0.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("")
    names = [path.name for path in frame_files(tmp_path, 6)]
    assert names == [f"frame{number}.PNG" for number in (1, 2, 3, 10, 11, 100)]
    assert [path.name for path in frame_files(tmp_path)] == [
        "frame1.PNG",
        "frame3.PNG",
        "frame10.PNG",
        "frame100.PNG",
    ]
    found = frames(tmp_path)
    assert [image.getpixel((0, 0)) for image in found] == [(n, 60, 200) for n in (1, 3, 10, 100)]
    assert {image.mode for image in found} == {"RGB"}


def test_numbers_of_any_length_can_be_in_names(tmp_path: Path):
    for name in ("007.png", "7.png", "08.png", "9" * 200 + ".png", "a.png"):
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    names = [path.name for path in frame_files(tmp_path, 5)]
    assert names == ["007.png", "7.png", "08.png", "9" * 200 + ".png", "a.png"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a readable video: it is empty; fetch it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n",
            "not a readable video: it is a pointer of Git LFS",
        ),
        (b"<!DOCTYPE html><html>", "not a readable video: it is a web page"),
        (b"\0" * 5000, "not a readable video"),
        (b"ffconcat version 1.0\nfile a.mp4\n", "not a readable video"),
        (b"#EXTM3U\n#EXTINF:1,\na.mp4\n#EXT-X-ENDLIST\n", "not a readable video"),
    ],
)
def test_what_is_no_video_is_refused(tmp_path: Path, content: bytes, reason: str):
    write_video(tmp_path / "a.mp4", 5)
    path = tmp_path / "b.mp4"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"b\.mp4: {reason}"):
        frames(path)


def test_a_picture_and_a_text_are_no_videos(tmp_path: Path):
    Image.new("RGB", (20, 12)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: not a readable video"):
        frames(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"none\.mp4: not a readable video: No such file"):
        frames(tmp_path / "none.mp4")


def test_sound_alone_is_refused(tmp_path: Path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        write_sound(container, container.add_stream("aac", rate=8000), 1)
    with pytest.raises(ValueError, match=r"a\.mp4: not a readable video: it holds no moving"):
        frames(tmp_path / "a.mp4")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.webm"])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, name: str):
    codec = "libvpx-vp9" if name.endswith("webm") else "mpeg4"
    # The header comes first, as in files made for the web.
    moved = {"movflags": "faststart"} if name.endswith("mp4") else {}
    times = [number * 1000 for number in range(20)] if name != "a.avi" else None
    write_video(tmp_path / "whole" / name, 20, codec=codec, times=times, options=moved)
    data = (tmp_path / "whole" / name).read_bytes()
    assert len(numbers(tmp_path / "whole" / name)) == 4
    for share in (0.1, 0.4):
        (tmp_path / name).write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ValueError, match=rf"{name}: not a readable video"):
            frames(tmp_path / name)


def test_damage_in_the_middle_is_refused_or_harmless(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", 20, codec="mpeg4")
    data = path.read_bytes()
    start = data.index(b"mdat") + 4
    path.write_bytes(data[:start] + b"\xff" * 400 + data[start + 400 :])
    with pytest.raises(ValueError, match=r"a\.mp4: not a readable video"):
        frames(path)


def test_huge_pictures_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_video(tmp_path / "a.mp4", 5)
    Image.new("RGB", (64, 48)).save(tmp_path / "frame.png")
    monkeypatch.setattr(video, "MAXIMUM_FRAME_PIXELS", 64 * 48 - 1)
    with pytest.raises(ValueError, match=r"a\.mp4: .*64 x 48 pixels are too many"):
        frames(path)
    path.unlink()
    with pytest.raises(ValueError, match=r"frame\.png: .*64 x 48 pixels are too many"):
        frames(tmp_path)


def test_endless_videos_and_folders_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_video(tmp_path / "a.mp4", 5)
    monkeypatch.setattr(video, "MAXIMUM_PACKETS", 4)
    with pytest.raises(ValueError, match="more than 4 frames"):
        frames(path)
    monkeypatch.setattr(video, "MAXIMUM_FILES", 0)
    with pytest.raises(ValueError, match="more than 0 files"):
        frames(tmp_path)


def test_a_folder_without_frames_and_a_wrong_count(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"holds no frames \(\.jpg"):
        frames(tmp_path)
    (tmp_path / "1.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"1\.jpg: not a readable image"):
        frames(tmp_path)
    for count in (0, -1, 65):
        with pytest.raises(ValueError, match=f"{count} frames were asked for"):
            frames(tmp_path, count)


def test_nothing_is_written_to_the_terminal(tmp_path: Path):
    path = write_video(tmp_path / "a.avi", 20, codec="mpeg4")
    data = path.read_bytes()
    path.write_bytes(data[:2000] + b"\xff" * 300 + data[2300:])
    shutil.copyfile(path, tmp_path / "b.avi")
    command = (
        "import pathlib, sys; from ibtrain.data.video import frames\n"
        "try: frames(pathlib.Path(sys.argv[1]))\nexcept ValueError: pass"
    )
    done = subprocess.run(
        [sys.executable, "-c", command, str(path)], capture_output=True, check=True, timeout=120
    )
    assert done.stdout == b"" and done.stderr == b""
