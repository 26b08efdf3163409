"""tools/bench_attention.py: its counts and verdicts, its clock, and a whole run on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TOOL = Path(__file__).parents[1] / "tools/bench_attention.py"
sys.path.append(str(TOOL.parent))

import bench_attention  # noqa: E402
from attention_bench.bench import Bench  # noqa: E402
from attention_bench.clock import Clock  # noqa: E402
from attention_bench.contenders import Problem, contenders  # noqa: E402
from attention_bench.rows import Row, verdicts  # noqa: E402
from attention_bench.shapes import Shape, on_cpu, operations, shapes  # noqa: E402


def test_a_quick_run_on_the_cpu(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "IBTRAIN_ATTENTION": "triton"}
    # 0.4 minutes leave no time for compilations, which take long where other work runs beside.
    command = [sys.executable, TOOL, "--quick", "--minutes", "0.4", "--out", tmp_path / "out"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "There is no GPU here" in done.stdout
    report = json.loads((tmp_path / "out/attention.json").read_text(encoding="utf-8"))
    assert set(report) == {
        *("date", "arguments", "commit", "device", "dtype", "seed", "hardware", "versions"),
        *("limits", "notes", "rows", "choices", "left_out", "verdicts"),
    }
    assert set(report["versions"]) == {"torch", "cuda", "triton", "python"}
    assert "There is no GPU here" in report["notes"][0]
    assert report["arguments"] == "--quick --minutes 0.4 --out DIR"
    rows = {(row["shape"], row["contender"], row["passes"]): row for row in report["rows"]}
    measured = rows["Llama-7B packed", "sdpa", "forward+backward"]
    assert measured["status"] == "measured" and measured["chosen"]
    assert measured["milliseconds"] > 0 and measured["forward_error"] < 6e-3
    refused = rows["T5-XL encoder 160", "torch_varlen", "forward"]
    assert (refused["status"], refused["reason"]) == ("cannot", "it takes no bias")
    assert rows["Llama-7B packed", "sdpa-efficient", "forward"]["status"] == "cannot"
    assert {verdict["state"] for verdict in report["verdicts"]} == {"not measured"}
    assert "| Llama-7B packed | sdpa * |" in (tmp_path / "out/attention.md").read_text()
    assert (tmp_path / "out/attention.png").stat().st_size > 10_000


def test_flops_and_bytes_of_attention():
    tower = next(shape for shape in shapes() if shape.name == "ViT-g 257")
    # 16 images x 16 heads x 257^2 pairs x 4 x 88.
    assert tower.flops("forward") == 5_951_807_488
    assert tower.flops("forward+backward") == 20_831_326_208
    # 4 tensors of 16 x 257 rows x 16 heads x 88, two bytes each; twelve with the backward.
    assert tower.moved("forward") == 46_317_568
    assert tower.moved("forward+backward") == 138_952_704
    causal = Shape("", "Llama", 2, 128, (3, 2), (3, 4), causal=True)
    # 1 + 2 + 3 pairs, and 3 + 4: the last query sees the last key.
    assert causal.flops("forward") == 4 * 2 * 128 * 13
    assert causal.moved("forward") == 2 * 2 * 128 * (2 * 5 + 2 * 7)


def test_bytes_of_the_elementwise_operations():
    moved = {
        operation.name: (operation.moved("forward"), operation.moved("backward"))
        for operation in operations()
    }
    assert moved == {
        "add+RMSNorm 7B (4096)": (134_225_920, 134_225_920),
        "RoPE 7B (32 heads)": (134_428_160, 134_428_160),
        "SiLU gate 7B (11008)": (270_532_608, 450_887_680),
        "add+RMSNorm 13B (5120)": (167_782_400, 167_782_400),
        "RoPE 13B (40 heads)": (167_982_592, 167_982_592),
        "SiLU gate 13B (13824)": (339_738_624, 566_231_040),
    }


def test_the_shapes_are_the_familys():
    found = {shape.name: shape for shape in shapes()}
    assert len(found) == 17
    llama = found["Llama-13B packed"]
    assert (llama.heads, llama.width, llama.causal) == (40, 128, True)
    assert sum(llama.queries) == 4096 and max(llama.queries) <= 416
    assert len(set(llama.queries)) > 5
    encoder = found["T5-XXL encoder 160"]
    assert (encoder.heads, encoder.width, encoder.bias, encoder.scale) == (64, 64, True, 1.0)
    assert found["Q-Former self 32+8, dropout 0.1"].queries == (40,) * 16


def row(shape, contender, milliseconds=None, kind="attention", **more):
    family = "T5 bias" if "T5" in shape else "Llama"
    made = Row(kind, shape, family, contender, "forward", "measured", **more)
    made.milliseconds = milliseconds
    return made


def test_verdicts():
    rows = [
        row("T5", "triton", 1.0, chosen=True),
        row("T5", "sdpa", 1.2),
        row("T5", "sdpa-efficient", 1.6),
        row("Llama", "triton", 3.0),
        row("Llama", "flash", 1.25, chosen=True),
        row("Llama", "torch_varlen", 1.0),
        row("Llama", "sdpa-efficient", 2.0),
        row("norm", "triton", kind="elementwise", of_copy_bandwidth=0.9),
        row("rope", "triton", kind="elementwise", of_copy_bandwidth=0.7),
        row("rope", "compiled", kind="elementwise", of_copy_bandwidth=0.1),
    ]
    padded, best, bandwidth, choice = verdicts(rows)
    assert (padded.state, padded.figures) == ("met", {"T5, forward": 1.6})
    assert (best.state, best.figures) == ("met", {"T5, forward": 1.2})
    assert bandwidth.state == "missed"
    assert bandwidth.lines()[0].startswith("missed (1 of 2): ")
    assert bandwidth.lines()[1:] == [
        "    missed   0.700  rope, forward",
        "    met      0.900  norm, forward",
    ]
    assert (choice.state, choice.figures) == ("missed", {"T5, forward": 1.0, "Llama, forward": 0.8})
    rows[1].milliseconds, rows[2].milliseconds = 0.9, 1.4
    padded, best, _, _ = verdicts(rows)
    assert (padded.state, best.state) == ("missed", "missed")
    assert [verdict.state for verdict in verdicts([])] == ["not measured"] * 4


def test_a_wrong_result_is_reported_and_not_timed():
    device, dtype = torch.device("cpu"), torch.bfloat16
    run = Bench(device, dtype, minutes=5)
    problem = Problem(on_cpu(shapes()[2]), device, dtype)
    padded = next(each for each in contenders(problem, dtype) if each.name == "sdpa-math")
    right = padded.attend
    padded.attend = lambda *inputs: right(*inputs) * 1.05
    run._attention(problem, padded, margin=0)
    assert {(found.status, found.milliseconds) for found in run.rows} == {("wrong", None)}
    assert "forward error 5.0e-02, and 6.0e-03 is tolerated" in run.rows[0].reason


def test_what_fails_is_a_row_and_what_has_no_time_too():
    run = Bench(torch.device("cpu"), torch.bfloat16, minutes=5)
    shape = shapes()[0]

    def fails():
        raise RuntimeError("out of luck\nand more")

    assert run._attempt(shape, ["triton"], fails, margin=0) is None
    run.deadline = 0.0
    assert run._attempt(shape, ["flash"], fails, margin=0) is None
    assert [(found.contender, found.status, found.reason) for found in run.rows[::2]] == [
        ("triton", "failed", "RuntimeError: out of luck"),
        ("flash", "left out", "the time was up (--minutes)"),
    ]


class Event:
    """Stands for a CUDA event: the clock's reading when it is recorded."""

    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = Event.now

    def elapsed_time(self, later):
        return later.at - self.at


def test_the_clock_on_a_gpu_times_the_run_alone(monkeypatch):
    asleep = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", asleep.append)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    clock = Clock(torch.device("cpu"), most=20)
    clock.cuda, clock.flush = True, torch.ones(4)

    def later(milliseconds):
        Event.now += milliseconds

    taken, _ = clock.measure(later, lambda: later(7.0) or 2.0)
    assert taken == pytest.approx(2.0)
    assert len(asleep) == 20 and not clock.flush.any()


def test_words_that_no_shape_has(capsys):
    with pytest.raises(SystemExit) as stopped:
        bench_attention.main(["--only", "mamba"])
    assert stopped.value.code == 2
    assert "no shape's name has --only 'mamba' in it" in capsys.readouterr().err
