import errno
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ibtrain.run_directory import take_run
from ibtrain.training.telemetry import Telemetry


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run)).Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_lines_and_scalars(tmp_path):
    telemetry = Telemetry(take_run(tmp_path), resumed_step=0)
    telemetry.log(10, {"loss": 2.5, "by_dataset": {"vqav2": 2.0, "coco": 3.0}, "note": "warm"})
    telemetry.log(20, {"loss": 1})
    assert lines(tmp_path) == [
        {
            "step": 10,
            "loss": 2.5,
            "by_dataset": {"vqav2": 2.0, "coco": 3.0},
            "note": "warm",
        },
        {"step": 20, "loss": 1},
    ]
    assert scalars(tmp_path) == {
        "loss": [(10, 2.5), (20, 1.0)],
        "by_dataset/vqav2": [(10, 2.0)],
        "by_dataset/coco": [(10, 3.0)],
    }


def test_a_line_is_on_disk_when_it_is_logged(tmp_path):
    telemetry = Telemetry(take_run(tmp_path), 0)
    telemetry.log(1, {"loss": 0.5})
    assert lines(tmp_path) == [{"step": 1, "loss": 0.5}]
    assert scalars(tmp_path) == {"loss": [(1, 0.5)]}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_none_ends_nothing(tmp_path, value):
    telemetry = Telemetry(take_run(tmp_path), 0)
    telemetry.log(1, {"loss": value, "by_dataset": {"coco": value, "vqav2": 1.5}, "rate": 0.25})
    telemetry.log(2, {"loss": 1.0})
    assert lines(tmp_path) == [
        {"step": 1, "loss": None, "by_dataset": {"coco": None, "vqav2": 1.5}, "rate": 0.25},
        {"step": 2, "loss": 1.0},
    ]
    assert scalars(tmp_path)["loss"] == [(2, 1.0)]


def test_after_a_resume_the_files_read_as_one_run(tmp_path):
    first = Telemetry(take_run(tmp_path), 0)
    for step in (10, 20, 30):
        first.log(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # the process was killed here
    second = Telemetry(take_run(tmp_path), resumed_step=20)
    assert lines(tmp_path) == [{"step": 10, "loss": 10.0}, {"step": 20, "loss": 20.0}]
    second.log(30, {"loss": 33.0})
    assert [line["loss"] for line in lines(tmp_path)] == [10.0, 20.0, 33.0]
    assert scalars(tmp_path)["loss"] == [(10, 10.0), (20, 20.0), (30, 33.0)]


def test_a_run_from_the_start_drops_every_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n[]\n7\n\n{"loss": 1}\n')
    Telemetry(take_run(tmp_path), resumed_step=0)
    assert lines(tmp_path) == []


def test_a_full_disk_is_warned_of_once_and_left_out(tmp_path, caplog):
    telemetry = Telemetry(take_run(tmp_path), 0)
    telemetry.log(1, {"loss": 1.0})
    path = tmp_path / "metrics.jsonl"
    path.rename(tmp_path / "kept.jsonl")
    path.symlink_to("/dev/full")
    with caplog.at_level(logging.WARNING):
        for step in (2, 3, 4):
            telemetry.log(step, {"loss": 1.0})
        (tmp_path / "kept.jsonl").rename(path)  # there is space again
        telemetry.log(5, {"loss": 0.5})
    (record,) = caplog.records
    assert record.getMessage() == (
        f"metrics cannot be written now ([Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}); "
        "training goes on"
    )
    assert lines(tmp_path) == [{"step": 1, "loss": 1.0}, {"step": 5, "loss": 0.5}]
    assert scalars(tmp_path) == {"loss": [(1, 1.0), (5, 0.5)]}


LIMITED = """
import resource, sys
from pathlib import Path
from ibtrain.run_directory import take_run
from ibtrain.training.telemetry import Telemetry
telemetry = Telemetry(take_run(Path(sys.argv[1])), 0)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
for step in range(300):
    telemetry.log(step, {"loss": 1.0})
print("trained on")
"""


def test_files_that_may_not_grow_are_survived(tmp_path):
    """The operating system itself refuses the writes; what stands there stays whole."""
    ended = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (0, "trained on\n")
    assert ended.stderr.count("training goes on") == 1
    assert "Traceback" not in ended.stderr
    assert [line["step"] for line in lines(tmp_path)][:50] == list(range(50))
    assert len(scalars(tmp_path)["loss"]) >= 40


def test_without_tensorboard_the_lines_are_written_and_it_is_said(tmp_path, monkeypatch, caplog):
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    telemetry = Telemetry(take_run(tmp_path), resumed_step=0)
    telemetry.log(1, {"loss": 2.0})
    telemetry.log(2, {"loss": 1.0})
    assert lines(tmp_path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["metrics.jsonl"]
    (said,) = caplog.messages
    assert said.startswith("no file for TensorBoard is written") and "pip install" in said
