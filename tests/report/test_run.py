import json
import shutil
from pathlib import Path

import pytest

from ibtrain.report.run import flat, read_run
from ibtrain.run_directory import RunDirectoryError
from tests.report.conftest import SHARES, recipe_of, write_run


def test_a_run_directory_is_read(tmp_path: Path, shards: Path):
    run = read_run(write_run(tmp_path / "run", shards), "r")
    assert run.notes == []
    assert (run.metrics.last_step, run.steps, run.metrics.lines) == (40, 40, 40)
    assert [(start.step, start.world_size) for start in run.starts] == [(0, 4), (20, 2)]
    found = [(c.name, c.step, c.world_size, c.version) for c in run.checkpoints]
    assert found == [("step-00000020", 20, 4, "0.1.0"), ("step-00000040", 40, 4, "0.1.0")]
    assert all(1_000_000 < checkpoint.bytes < 1_010_000 for checkpoint in run.checkpoints)
    assert run.asked_shares == SHARES
    assert run.incidents.counts == {("vqav2", "record"): 1} == run.incidents.samples
    assert run.incidents.first[0]["reason"] == "not a readable image"
    assert run.recipe == recipe_of(tmp_path / "run", shards)
    assert run.value("training.global_batch") == 8 and run.value("training.none.deeper") is None


def test_reading_changes_nothing(tmp_path: Path, shards: Path):
    path = write_run(tmp_path / "run", shards)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    read_run(path, "r")
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_each_thing_that_is_missing_or_damaged_is_said(tmp_path: Path, shards: Path):
    path = write_run(tmp_path / "run", shards)
    (path / "starts.jsonl").unlink()
    for file in path.glob("events.*"):
        file.unlink()
    (path / "recipe.yaml").write_text("name: x\nsteps: 3\n")
    (path / "plan.json").write_text("[")
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 39, "loss": null}\nnonsense\n{"step": 41, "lo')
    (path / "quarantine.jsonl").write_text("nonsense\n")
    (path / "checkpoints/step-00000040/state.json").write_text("{")
    run = read_run(path, "r")
    wanted = [
        "1 lines of metrics.jsonl cannot be read",
        "the last line of metrics.jsonl is half written",
        "1 lines of metrics.jsonl are of steps that were logged before",
        "loss was not finite in 1 lines",
        "recipe.yaml is not of this version of ibtrain",
        "neither starts.jsonl nor a TensorBoard file",
        "step-00000040/state.json is not JSON",
        "1 lines of starts.jsonl or quarantine.jsonl cannot be read",
        "plan.json is not JSON",
    ]
    for sentence in wanted:
        assert any(sentence in note for note in run.notes), (sentence, run.notes)
    assert len(run.notes) == len(wanted)
    assert run.asked_shares == SHARES and run.recipe is None
    for name in ("metrics.jsonl", "recipe.yaml"):
        (path / name).unlink()
    shutil.rmtree(path / "checkpoints")
    (path / "metrics.jsonl").touch()
    notes = read_run(path, "r").notes
    assert {"there is no checkpoint yet"} <= set(notes)
    assert any("recipe.yaml is missing" in note for note in notes)
    assert any("has no line yet" in note for note in notes)


@pytest.mark.parametrize(
    "text", ["a: &a [1]\nb: !!python/object:os.x {}", "!!timestamp 2000-13-45", "{", "- 1", "\x00"]
)
def test_a_recipe_of_any_kind_is_survived(tmp_path: Path, text: str):
    (tmp_path / "recipe.yaml").write_text(text)
    run = read_run(tmp_path, "r")
    assert run.recipe is None and any("recipe.yaml" in note for note in run.notes)


def test_interpolations_of_a_recipe_are_not_followed(tmp_path: Path, shards: Path, monkeypatch):
    monkeypatch.setenv("A_SECRET", "hidden")
    path = write_run(tmp_path / "run", shards)
    text = (path / "recipe.yaml").read_text().replace("name: tried", "name: ${oc.env:A_SECRET}")
    (path / "recipe.yaml").write_text(text)
    run = read_run(path, "r")
    assert run.recipe is not None and run.recipe.name == "${oc.env:A_SECRET}"


def test_what_is_no_run_is_refused(tmp_path: Path, shards: Path):
    run = write_run(tmp_path / "run", shards)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "export").mkdir()
    for name in ("export_report.json", "recipe.yaml"):
        (tmp_path / "export" / name).write_text(json.dumps({}))
    for path, reason in (
        (tmp_path / "none", "is not there"),
        (tmp_path / "empty", "holds neither recipe.yaml nor metrics.jsonl nor checkpoints"),
        (tmp_path / "file", "is no run"),
        (tmp_path / "export", "is an export"),
        (run / "checkpoints/step-00000020", f"is one step; give its run, {run}"),
    ):
        with pytest.raises(RunDirectoryError, match=reason):
            read_run(path, "r")


def test_a_recipe_laid_flat():
    values = {"a": {"b": [1, {"c": 2}], "d": {}}, "e": None}
    assert dict(flat(values)) == {"a.b": '[1, {"c": 2}]', "a.d": "{}", "e": "null"}
