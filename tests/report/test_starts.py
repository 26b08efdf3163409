import json
import os
from pathlib import Path

from ibtrain.report.lines import Unread
from ibtrain.report.starts import Start, read_starts, when
from ibtrain.run_directory import take_run
from ibtrain.training.telemetry import Telemetry


def test_recorded_starts_are_read(tmp_path: Path):
    lines = [
        {"step": 0, "time": "2026-11-20T10:00:00+00:00", "world_size": 2},
        {"step": 7, "time": "2026-11-21T12:30:00+02:00", "versions": {"torch": "2"}},
        {"step": "x", "time": 5, "versions": [1], "environment": {"a": None, "b": 3}},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "starts.jsonl").write_text(text + '{"step": 9, "ti')
    unread = Unread()
    first, second, third = read_starts(tmp_path, unread)
    assert first == Start(0, 1795168800.0, 2, recorded=True)
    assert (second.step, second.time) == (7, "2026-11-21 10:30:00 UTC")
    assert second.versions == {"torch": "2"}
    assert third == Start(None, None, recorded=True, environment={"b": "3"})
    assert unread.half_written and not unread.damaged


def test_older_runs_are_told_by_their_event_files(tmp_path: Path):
    """The files are those that training writes; there are no lines for them."""
    for step in (0, 40):
        Telemetry(take_run(tmp_path), step).log(step + 1, {"loss": 1.0})
    starts = read_starts(tmp_path, Unread())
    assert [start.step for start in starts] == [0, 40]
    names = sorted(path.name for path in tmp_path.glob("events.*"))
    times = [float(".".join(name.split(".")[3:5])) for name in names]
    assert [start.seconds for start in starts] == times
    assert not any(start.recorded for start in starts)


def test_starts_before_the_first_recorded_one_are_added(tmp_path: Path):
    Telemetry(take_run(tmp_path), 0)
    [file] = tmp_path.glob("events.*")
    content = file.read_bytes()
    (tmp_path / "events.out.tfevents.1700000000.123456.host.1").write_bytes(content)
    now = float(".".join(file.name.split(".")[3:5]))
    line = {"step": 3, "time": when(now + 1).replace(" UTC", "+00:00"), "world_size": 4}
    (tmp_path / "starts.jsonl").write_text(json.dumps(line) + "\n")
    starts = read_starts(tmp_path, Unread())
    assert [(start.step, start.recorded) for start in starts] == [(0, False), (3, True)]
    assert starts[0].time == "2023-11-14 22:13:20 UTC"


def test_event_files_of_any_content_are_survived(tmp_path: Path):
    Telemetry(take_run(tmp_path), 5)
    [file] = tmp_path.glob("events.*")
    good = file.read_bytes()
    file.unlink()
    contents = [b"", good[:20], good[:-3], b"\xff" * 200, bytes(100), os.urandom(1000)]
    for number, content in enumerate(contents):
        (tmp_path / f"events.out.tfevents.170000000{number}.5.h.1").write_bytes(content)
    (tmp_path / "events.out.tfevents.abc").write_bytes(good)
    (tmp_path / "events.out.tfevents.1700000009").mkdir()
    starts = read_starts(tmp_path, Unread())
    assert len(starts) == len(contents) and all(start.step in (None, 5) for start in starts)


def test_a_time_that_no_calendar_has():
    assert when(1e30) == "" and when(float("nan")) == "" and when(0) == "1970-01-01 00:00:00 UTC"
