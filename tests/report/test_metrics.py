import json
import tracemalloc
from pathlib import Path

from ibtrain.report.metrics import MOST_DATASETS, read_metrics
from ibtrain.run_directory import take_run
from ibtrain.training.telemetry import Telemetry


def test_what_telemetry_writes_is_read(tmp_path: Path):
    telemetry = Telemetry(take_run(tmp_path), 0)
    for step in (1, 2, 3):
        telemetry.log(
            step,
            {
                "loss": 4.0 - step if step < 3 else float("nan"),
                "loss_by_dataset": {"vqav2": 3.0 * step},
                "samples_by_dataset": {"vqav2": 6, "llava": 2},
                "quarantined": {"vqav2": 1, "llava": 0},
                "samples_per_second": 10.0 * step,
                "learning_rate": 1e-5,
                "gradient_norm": 0.5,
                "data_wait": 0.25,
                "answer_tokens_per_second": 100.0,
                "epoch": step / 4,
                "memory": {"host_gib": 2.0, "device_gib": 30.0 + step},
            },
        )
    metrics = read_metrics(tmp_path)
    assert [(p.x, p.mean) for p in metrics.scalars["loss"]] == [(1, 3.0), (2, 2.0)]
    assert metrics.not_finite == {"loss": 1}
    assert [p.mean for p in metrics.scalars["memory/device_gib"]] == [31, 32, 33]
    assert [p.mean for p in metrics.loss_by_dataset["vqav2"]] == [3, 6, 9]
    assert metrics.drawn == {"vqav2": 18, "llava": 6} and metrics.replaced["vqav2"] == 3
    assert (metrics.lines, metrics.first_step, metrics.last_step, metrics.epoch) == (3, 1, 3, 0.75)
    assert metrics.last["loss"] == 2.0 and metrics.last["samples_per_second"] == 30.0


def test_lines_of_any_kind_are_survived(tmp_path: Path):
    lines = [
        {"step": "5", "loss": 1},
        {"loss": 1},
        {"step": 1, "loss": "high", "memory": 3, "loss_by_dataset": [1], "epoch": True},
        {"step": 2, "loss": 10**400, "samples_by_dataset": {"a": None, "b": 1e400}},
        {"step": 2, "loss": 1},
        {"step": 1, "loss": 2, "samples_by_dataset": {str(n): 1 for n in range(1000)}},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = read_metrics(tmp_path)
    assert metrics.unread.damaged == 2 and metrics.lines == 4 and metrics.backward == 2
    assert len(metrics.drawn) == MOST_DATASETS and metrics.left_out == 1000 - MOST_DATASETS
    assert [(p.x, p.mean) for p in metrics.scalars["loss"]] == [(1.5, 1.5)]


def test_many_lines_take_no_more_memory_than_few(tmp_path: Path):
    def peak(count: int) -> int:
        with (tmp_path / "metrics.jsonl").open("w") as file:
            for step in range(count):
                file.write(f'{{"step": {step}, "loss": {step % 7}, "data_wait": 0.5}}\n')
        tracemalloc.start()
        metrics = read_metrics(tmp_path)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert metrics.lines == count and len(metrics.scalars["loss"]) <= 600
        return size

    few = peak(2_000)
    assert peak(40_000) < 1.2 * few
