import json
import re
from pathlib import Path

import pytest

from ibtrain.cli import main
from ibtrain.report.page import write_report
from tests.html_page import Page, assert_by_itself, rows_of
from tests.report.conftest import change_recipe, write_run

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "first", shards)


def report(*runs: Path, out: Path, **options) -> str:
    write_report(runs, out, **options)
    return out.read_text(encoding="utf-8")


def test_the_page_of_a_run(run: Path, tmp_path: Path):
    text = report(run, out=tmp_path / "page.html")
    shown = Page(text)
    assert_by_itself(shown)
    headings = [given["id"] for tag, given in shown.tags if tag == "section"]
    assert headings == [
        *("loss", "curves", "datasets", "mixture", "evaluations", "samples", "starts"),
        *("checkpoints", "quarantine", "plan", "recipe", "environment"),
    ]
    titles = re.findall(r"<figcaption>([^<]*)", text)
    assert [title.strip() for title in titles] == [
        *("Loss", "Learning rate", "Gradient norm", "Throughput", "Answers", "Waiting for data"),
        *("Device memory", "Host memory", "vqav2", "llava"),
    ]
    assert "Loss, per answer token. first: from 4 at step 1 to 0.1 at step 40." in text
    assert text.count("first went on from step 20 2026-11-21 10:00:00 UTC") >= 7
    # Drawn: 5 of 8 and 3 of 8; asked for: what the checkpoint says.
    mixture = rows_of(text, "shares of the mixture of first")
    assert mixture[1:] == [
        ["vqav2", "", "62.50%", "75.00%", "200", "1"],
        ["llava", "", "37.50%", "25.00%", "120", "0"],
    ]
    widths = re.findall(r'<rect class="(share|size)" x="0" y="\d+" width="([\d.]+)"', text)
    assert widths == [
        *[("share", "83.333"), ("size", "100.000")],
        *[("share", "50.000"), ("size", "33.333")],
    ]
    assert rows_of(text, "starts")[1:] == [
        ["2026-11-20 10:00:00 UTC", "beginning", "4", "node0", "NVIDIA H100", "0.1.0"],
        ["2026-11-21 10:00:00 UTC", "20", "2", "node20", "NVIDIA H100", "0.1.0"],
    ]
    kept = [row[0] for row in rows_of(text, "checkpoints")[1:]]
    assert kept == ["step-00000020", "step-00000040"]
    assert rows_of(text, "bad data, counted")[1:] == [["vqav2", "record", "1", "1"]]
    assert rows_of(text, "bad data, one by one")[1][-1] == "record 3: not a readable image"
    assert ["torch", "2.13.0"] in rows_of(text, "environment of the last start")
    assert "global_batch: 8" in text and "there is no plan.json" in text
    words = " ".join(shown.words)
    assert "40 of 40" in words and "done" in words and "2, resumed 1" in words
    # Samples of the shards: three of each dataset, with their pictures.
    assert text.count("<article>") == 6 == len(shown.images())
    assert sum("Number " in drawn or "What is number" in drawn for drawn in shown.drawn) == 6


def test_runs_are_laid_over_each_other(run: Path, shards: Path, tmp_path: Path):
    other = write_run(tmp_path / "second", shards, steps=20, loss=8.0, learning_rate=3e-5)
    with (other / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "lo')
    text = report(run, other, out=tmp_path / "page.html")
    loss = text[text.index('<section id="loss"') : text.index('<section id="curves"')]
    lines = re.findall(r'points="(.*?)"', loss)
    ends = [float(points.split()[-1].split(",")[0]) for points in lines]
    assert ends == [1000.0, pytest.approx(1000 * 19 / 39, abs=0.1)]
    assert 'class="line c0"' in loss and 'class="line c1"' in loss
    assert "first: from 4 at step 1 to 0.1 at step 40; second: from 8 at step 1 to 0.4" in loss
    rows = rows_of(text, "the runs")
    assert [row[:3] for row in rows[1:]] == [
        ["first", "done", "40 of 40"],
        ["second", "going on, or stopped", "20 of 40"],
    ]
    differing = rows_of(text, "where the recipes differ")
    assert differing == [
        ["key", "first", "second"],
        ["output", f'"{run}"', f'"{other}"'],
        ["training.learning_rate", "1e-05", "3e-05"],
    ]
    assert "second: the last line of metrics.jsonl is half written" in text
    assert text.count("<article>") == 6  # of the first run alone


def test_runs_of_the_same_name_are_told_apart_and_one_given_twice_is_one(
    run: Path, shards: Path, tmp_path: Path
):
    other = write_run(tmp_path / "else/first", shards, steps=20)
    text = report(run, other, run / ".", out=tmp_path / "page.html", samples=0)
    names = [f"{run.parent.name}/first", "else/first"]
    assert [row[0] for row in rows_of(text, "the runs")[1:]] == names


def test_the_plan_is_held_against_what_was_measured(run: Path, tmp_path: Path, shards: Path):
    own = write_run(tmp_path / "run", shards)
    choice = {
        "sharding": "zero2",
        "memory_bytes_per_gpu": {"total": 16 * 2**30},
        "step_seconds": 0.25,
        "samples_per_second": 32.0,
        "mfu": 0.2,
    }
    plan = {"device": "h100", "nodes": 2, "gpus_per_node": 1, "because": HOSTILE}
    plan["choices"] = [{"sharding": "zero1"}, choice]
    (own / "plan.json").write_text(json.dumps(plan))
    text = report(own, out=tmp_path / "page.html", samples=0)
    # 8 samples at 16 a second are half a second: twice the plan's time, half its MFU.
    assert rows_of(text, "plan and measurement of run")[1:] == [
        ["GPUs", "2", "2", ""],
        ["seconds per step", "0.25", "0.5", "2.00"],
        ["samples per second", "32", "16", "0.50"],
        ["MFU in %", "20", "10", "0.50"],
        ["GiB of each GPU", "16", "20", "1.25"],
    ]
    assert_by_itself(Page(text))
    change_recipe(own, sharding="zero3")
    assert "plan.json says nothing of zero3" in report(own, out=tmp_path / "p.html", samples=0)
    # As training writes it: what it took and why, with the plan where the planner chose.
    within = {"sharding": "zero2", "because": "it fits", "ranks": 2, "plan": plan}
    (own / "plan.json").write_text(json.dumps(within))
    text = report(own, out=tmp_path / "p.html", samples=0)
    assert rows_of(text, "plan and measurement of run")[2] == [
        *("seconds per step", "0.25", "0.5", "2.00")
    ]
    (own / "plan.json").write_text('{"sharding": "zero3", "because": "the recipe names it"}')
    text = report(own, out=tmp_path / "p.html", samples=0)
    assert "zero3, because the recipe names it" in text and "no plan was made" in text
    for broken in ({"choices": 3}, {"choices": [1, {"sharding": "zero3", "mfu": "x"}]}, {}):
        (own / "plan.json").write_text(json.dumps(broken))
        report(own, out=tmp_path / "p.html", samples=0)


def test_hostile_contents_stay_texts(tmp_path: Path):
    own = tmp_path / "<b>run"
    (own / "evaluation").mkdir(parents=True)
    (own / "recipe.yaml").write_text(json.dumps({"name": HOSTILE, "training": {"steps": HOSTILE}}))
    line = {"step": 1, "loss": 1.0, "loss_by_dataset": {HOSTILE: 2.0}, HOSTILE: HOSTILE}
    line["samples_by_dataset"] = {HOSTILE: 3}
    (own / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    start = {"step": 0, "time": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    start["environment"] = {"host": HOSTILE}
    (own / "starts.jsonl").write_text(json.dumps(start) + "\n")
    bad = dict.fromkeys(("step", "kind", "dataset", "shard", "record", "reason"), HOSTILE)
    (own / "quarantine.jsonl").write_text(json.dumps(bad) + "\n")
    (own / "plan.json").write_text(json.dumps({"choices": HOSTILE, "device": HOSTILE}))
    rows = {HOSTILE: {"metric": HOSTILE, "value": 0.5, "interval": [HOSTILE], "n": HOSTILE}}
    (own / "evaluation/results.json").write_text(json.dumps({"benchmarks": rows}))
    answer = dict.fromkeys(("benchmark", "question", "prediction", "correct"), HOSTILE)
    answer["answers"] = [HOSTILE]
    (own / "evaluation/predictions.jsonl").write_text(json.dumps(answer) + "\n")
    text = report(own, out=tmp_path / "page.html")
    shown = Page(text)
    assert not {tag for tag, _ in shown.tags} & {"script", "img", "b"}
    assert not any(name.startswith("on") for _, given in shown.tags for name in given)
    assert "".join(shown.words).count(HOSTILE) > 15 and "<b>run" in "".join(shown.words)


def test_an_old_run_and_one_that_has_just_begun_give_a_page(tmp_path: Path, shards: Path):
    old = write_run(tmp_path / "old", shards)
    (old / "starts.jsonl").unlink()
    text = report(old, out=tmp_path / "page.html", samples=0)
    rows = rows_of(text, "starts")[1:]
    assert [row[1:3] for row in rows] == [["beginning", "not recorded"], ["20", "not recorded"]]
    assert "checkpoints were written by ibtrain 0.1.0" in text
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "recipe.yaml").write_text((old / "recipe.yaml").read_text())
    text = report(begun, out=tmp_path / "page.html", samples=1)
    assert "has no line yet" in text and "there is no checkpoint yet" in text
    assert text.count("<article>") == 2


def test_shards_that_are_elsewhere_are_said_to_be(tmp_path: Path, run: Path, shards: Path):
    own = write_run(tmp_path / "run", shards)
    text = (own / "recipe.yaml").read_text()
    (own / "recipe.yaml").write_text(text.replace(str(shards), "s3://bucket"))
    page = report(own, out=tmp_path / "page.html")
    assert "the shards at s3://bucket/vqav2 are not on this machine (nor 1 others)" in page
    (own / "recipe.yaml").write_text(text.replace(str(shards / "llava"), str(tmp_path)))
    assert "samples are not shown: " in report(own, out=tmp_path / "page.html")


@pytest.mark.usefixtures("logger_as_it_was")
def test_the_verb_and_what_it_refuses(run: Path, tmp_path: Path, capsys):
    out = tmp_path / "page.html"
    words = ["report", "--json", str(run), "--out", str(out), "--samples", "0"]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {"page": str(out), "runs": [{"run": str(run), "step": 40}]}
    assert out.stat().st_size > 10_000
    for arguments, sentence in (
        ([str(tmp_path / "none")], "none is not there; a run directory is what"),
        ([str(run), str(tmp_path)], "is no run: it holds neither"),
        ([str(run), "--out", str(tmp_path / "no/p.html")], "cannot be written to"),
        ([str(run), "--evaluation", str(tmp_path / "no")], "no is not there; give what --out"),
        ([str(run), "--samples", "-1"], "0 to 500"),
    ):
        assert main(["report", *arguments]) == 2
        said = capsys.readouterr().err
        assert sentence in said and said.count("\n") == 1, said
