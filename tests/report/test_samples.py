import json
from pathlib import Path

from PIL import Image

from ibtrain.report.page import write_report
from ibtrain.report.samples import Answer, evaluations_in, read_evaluation
from tests.html_page import Page, assert_by_itself, rows_of
from tests.report.conftest import write_run


def write_evaluation(directory: Path, count: int) -> None:
    """The files of an evaluation of one benchmark."""
    directory.mkdir()
    row = {"metric": "exact match", "value": 0.5, "interval": [0.25, 0.75], "n": count}
    document = {"benchmarks": {"gqa": row}, "model": {"step": 20}}
    (directory / "results.json").write_text(json.dumps(document))
    with (directory / "predictions.jsonl").open("w") as file:
        for number in range(count):
            line = {
                "benchmark": "gqa",
                "question": f"What is {number}?",
                "prediction": f"it is {number}",
                "answers": [f"it is {number}", "one more"],
                "correct": number % 2 == 0,
            }
            file.write(json.dumps(line) + "\n")
    Image.new("RGB", (2200, 100)).save(directory / "gqa.png")


def test_what_evaluation_writes_is_read(tmp_path: Path, shards: Path):
    run = write_run(tmp_path / "run", shards, steps=20)
    write_evaluation(run / "evaluation", 20)
    assert evaluations_in(run) == [run / "evaluation"]
    [benchmark] = read_evaluation(run / "evaluation").benchmarks
    assert (benchmark.name, benchmark.value, benchmark.n) == ("gqa", 0.5, "20")
    assert benchmark.interval == "25.00% to 75.00%"
    assert len(benchmark.answers) == 8
    assert benchmark.answers[1] == Answer("What is 1?", "it is 1", "it is 1 | one more", "no")
    assert benchmark.picture is not None
    assert (benchmark.picture.width, benchmark.picture.height) == (1100, 50)
    write_evaluation(tmp_path / "elsewhere", 3)
    write_report([run], tmp_path / "page.html", [tmp_path / "elsewhere"], 0)
    text = (tmp_path / "page.html").read_text()
    assert_by_itself(Page(text))
    wanted = ["gqa", "exact match", "50.00%", "25.00% to 75.00%"]
    assert rows_of(text, "scores of evaluation")[1] == [*wanted, "20"]
    assert text.count("</bdi>, step 20</h3>") == 2
    assert rows_of(text, "scores of elsewhere")[1] == [*wanted, "3"]
    assert len(Page(text).images()) == 2


def test_damaged_evaluations_are_said_or_shown_without(tmp_path: Path):
    (tmp_path / "results.json").write_text("{")
    assert "is not JSON" in read_evaluation(tmp_path).trouble
    (tmp_path / "results.json").write_text("{}")
    assert "names no benchmarks" in read_evaluation(tmp_path).trouble
    outside = tmp_path / "secret.png"
    Image.new("RGB", (4, 4)).save(outside)
    (tmp_path / "inside").mkdir()
    names = '{"benchmarks": {"../secret": {"value": true}, "gqa": {}, "x": 3}}'
    (tmp_path / "inside/results.json").write_text(names)
    (tmp_path / "inside/gqa.png").write_bytes(outside.read_bytes()[:40])
    found = read_evaluation(tmp_path / "inside").benchmarks
    assert [(b.name, b.value, b.picture) for b in found] == [
        ("../secret", None, None),
        ("gqa", None, None),
    ]
