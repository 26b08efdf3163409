"""One chunk: what is decoded, what is kept after a kill, and what is set aside."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ibtrain.data.preparation import conversion
from ibtrain.data.preparation.prepare import OverBudgetError
from ibtrain.data.shards.records import (
    check_index,
    read_records,
)
from tests.data.preparation.conversions import contents, conversations, start, whole


@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_after_a_kill_finished_parts_are_not_touched(tmp_path: Path, workers: str):
    raw = conversations(tmp_path / "raw", count=48, images=48, size=(900, 700))
    out = tmp_path / "out"
    process = start(tmp_path, raw, out, "--workers", workers)
    wait_until(lambda: len(list(out.glob(".parts/part-*/part.json"))) >= 2, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(ValueError, match=r"index\.json"):
        check_index(out)
    stored = [identity(path) for path in sorted(out.glob(".parts/part-*/shard.*"))]
    assert stored and not (out / "index.json").exists()
    again = start(tmp_path, raw, out, "--workers", workers)
    text, errors = again.communicate(timeout=600)
    assert again.returncode == 0, errors
    assert json.loads(text)["written"] == 48
    assert set(stored) <= {identity(path) for path in out.glob("shard.*")}
    undisturbed = start(tmp_path, raw, tmp_path / "undisturbed")
    assert undisturbed.wait(timeout=600) == 0
    assert contents(out) == contents(tmp_path / "undisturbed")


def identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def wait_until(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_image_is_decoded_once_however_far_apart_its_examples_are(
    tmp_path: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch
):
    raw = conversations(tmp_path / "raw", count=60, images=12)
    decoded: list[Path] = []
    plain = conversion.reencode

    def counting(path: Path, **options: Any) -> bytes:
        decoded.append(path)
        return plain(path, **options)

    monkeypatch.setattr(conversion, "reencode", counting)
    assert whole(raw, tmp_path / "out").written == 60
    assert len(decoded) == len(set(decoded)) == 12
    for record in read_records(tmp_path / "out"):
        name = int(record.id.split("-")[0]) % 12
        assert record.images[0] == (raw / f"images/{name}.jpg").read_bytes()


def test_mended_images_are_read_again_and_the_rest_is_kept(
    tmp_path: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch
):
    raw = conversations(tmp_path / "raw", count=40, images=20)
    good = (raw / "images/7.jpg").read_bytes()
    (raw / "images/7.jpg").write_bytes(good[:100])
    with pytest.raises(OverBudgetError, match="2 of 41 annotations are bad"):
        whole(raw, tmp_path / "out")
    (raw / "images/7.jpg").write_bytes(good)
    converted: list[int] = []
    plain = conversion._write

    def counting(directory: Path, *rest: Any) -> conversion.ChunkReport:
        converted.append(int(directory.name.split(".")[1].removeprefix("part-")))
        return plain(directory, *rest)

    kept = {int(path.parent.name[5:]) for path in tmp_path.glob("out/.parts/part-*/part.json")}
    monkeypatch.setattr(conversion, "_write", counting)
    assert whole(raw, tmp_path / "out").written == 40
    assert len(kept - set(converted)) == len(kept) - 1
    whole(raw, tmp_path / "other")
    assert contents(tmp_path / "out") == contents(tmp_path / "other")


def test_a_record_too_large_to_read_back_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(conversion, "MAXIMUM_RECORD_BYTES", 5000)
    raw = conversations(tmp_path / "raw", count=4, images=2)
    Image.effect_noise((280, 280), 90).convert("RGB").save(raw / "images/1.jpg")
    report = whole(raw, tmp_path / "out", budget=0.5)
    assert (report.written, report.quarantined) == (2, 2)
    assert "more than the 5000 of a record" in (tmp_path / "out/quarantine.jsonl").read_text()
