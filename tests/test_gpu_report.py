"""tools/gpu_report.py on a CPU: parts that end, fail and hang, and what is left of each.

All parts are rehearsed in the environment of a GPU machine (`make test-card`); here a few.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tools"))

import gpu_report  # noqa: E402
from gpu_parts import page  # noqa: E402


def rehearse(out: Path, *parts: str, **options: Path) -> int:
    told = [f"--{name}={value}" for name, value in options.items()]
    return gpu_report.main(["--rehearse", "--out", str(out), "--parts", *parts, *told])


def report(out: Path) -> dict:
    (path,) = out.glob("*-rehearsal.json")
    return json.loads(path.read_text())


def test_parts_are_rehearsed_from_the_command_line(tmp_path):
    command = [sys.executable, str(ROOT / "tools/gpu_report.py"), "--rehearse"]
    command += ["--out", str(tmp_path), "--parts", "machine", "kernels", "step-13b"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HOME": "/"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 parts done in " in done.stdout
    parts = report(tmp_path)["parts"]
    assert {name: (part["state"], part["faults"]) for name, part in parts.items()} == {
        "machine": ("done", []),
        "kernels": ("done", []),
        "step-13b": ("done", []),
    }
    assert parts["kernels"]["facts"]["right"] == parts["kernels"]["facts"]["cases"] == 40
    rows = [(row["kind"], row["recompute"], row["samples"]) for row in parts["step-13b"]["rows"]]
    assert rows == [("mixture", True, 2), ("mixture", False, 2), ("longest", True, 2)]
    (text,) = (path.read_text() for path in tmp_path.glob("*.md"))
    assert "no figure here says anything about a GPU" in text
    assert "40 of 40 cases right" in text
    assert "| step-13b | mixture | 2 | yes |" in text


def test_a_part_that_hangs_costs_itself_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_report, "REHEARSAL_SECONDS", 1)
    assert rehearse(tmp_path, "machine", "attention") == 1
    parts = report(tmp_path)["parts"]
    assert parts["machine"]["done"]
    assert (parts["attention"]["state"], parts["attention"]["done"]) == ("stopped after 1 s", False)
    assert "AT FAULT  attention: stopped after 1 s" in capsys.readouterr().out


def test_a_part_that_fails_says_why_and_the_next_one_runs(tmp_path, capsys):
    taken = tmp_path / "a file"
    taken.write_text("")
    assert rehearse(tmp_path / "out", "training", "machine", world=taken) == 1
    parts = report(tmp_path / "out")["parts"]
    assert parts["machine"]["done"] and not parts["training"]["done"]
    (fault,) = parts["training"]["faults"]
    assert fault.startswith("the part training broke off: ")
    assert str(taken) in fault or "a file" in fault
    assert f"AT FAULT  training: {fault}" in capsys.readouterr().out


def test_when_the_time_is_over_what_was_not_begun_is_named(tmp_path):
    arguments = ["--rehearse", "--out", str(tmp_path), "--minutes", "0", "--parts", "machine"]
    assert gpu_report.main(arguments) == 1
    assert report(tmp_path)["parts"]["machine"]["state"] == "not begun: the time is over"


def test_a_part_that_is_none(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        rehearse(tmp_path, "kernel")
    assert ended.value.code == 2
    assert "there is no part 'kernel'; the parts are machine, kernels" in capsys.readouterr().err


def document(date: str, **parts: bool) -> dict:
    nothing = {"facts": {}, "rows": [], "faults": [], "wall_seconds": 1.0}
    found = {
        name.replace("_", "-"): nothing | {"done": done, "state": "done" if done else "stopped"}
        for name, done in parts.items()
    }
    return {"date": date, "rehearsal": True, "commit": f"c{date}", "seconds": 10, "parts": found}


def test_of_several_reports_the_last_that_was_done_counts(tmp_path):
    documents = [
        document("2026-01-03", machine=True, attention=False),
        document("2026-01-01", machine=True, kernels=True, step_7b=False),
        document("2026-01-02", kernels=False, step_7b=False),
    ]
    files = [tmp_path / f"{number}.json" for number in range(len(documents))]
    for path, each in zip(files, documents, strict=True):
        path.write_text(json.dumps(each))
    out = tmp_path / "out"
    assert gpu_report.main(["--out", str(out), "--merge", *map(str, files)]) == 0
    merged = report(out)
    assert {name: part["commit"] for name, part in merged["parts"].items()} == {
        "machine": "c2026-01-03",
        "kernels": "c2026-01-01",
        "step-7b": "c2026-01-02",
        "attention": "c2026-01-03",
    }
    assert (merged["seconds"], merged["merged"]) == (30, 3)
    assert "| kernels | done | 1 | 0 | c2026-01-01 |" in "\n".join(page.lines(merged, []))
    assert not (out / "log.txt").exists()
