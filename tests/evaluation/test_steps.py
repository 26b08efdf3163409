import json

import pytest

from ibtrain.evaluation.benchmarks import Options
from ibtrain.evaluation.steps import evaluate_steps, find_steps, mean_of
from tests.evaluation.test_benchmarks import records, write_shards
from tests.tiny import write_tiny_base
from tests.tiny_run import write_tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_processor):
    root = tmp_path_factory.mktemp("run")
    base = write_tiny_base(root / "base", tiny_processor)
    for step in (3, 6):
        write_tiny_run(root / "run", step, base=base)
    return root / "run"


def test_the_best_step_is_told_by_a_mean(run, tmp_path):
    data = tmp_path / "data"
    write_shards(data / "gqa", records(4))
    write_shards(data / "gqa-challenge", records(6))
    means = {"mine": ["gqa", "gqa-challenge"]}
    document = evaluate_steps(
        run, data, None, tmp_path / "out", Options(greedy=True), "all", means, "mine"
    )
    assert [row["step"] for row in document["steps"]] == [3, 6]
    assert document["best"] in (3, 6)
    assert json.loads((tmp_path / "out/steps.json").read_text()) == document
    own = json.loads((tmp_path / "out/step-00000006/results.json").read_text())["benchmarks"]
    expected = (own["gqa"]["value"] + own["gqa-challenge"]["value"]) / 2
    assert document["steps"][1]["means"]["mine"] == expected
    with pytest.raises(ValueError, match="no mean is called 'his'; there are all, held_in, held_"):
        evaluate_steps(run, data, None, tmp_path / "out", Options(), "all", means, "his")


def test_steps_that_are_not_there(run, tmp_path):
    assert find_steps(run, "6,3,6") == [3, 6]
    with pytest.raises(ValueError, match="has no step '9'; there are 3, 6"):
        find_steps(run, "3,9")
    with pytest.raises(ValueError, match="has no step to evaluate"):
        find_steps(tmp_path, "all")


def test_means():
    assert mean_of({"a": 0.5, "b": 1.0}, ["a", "b"], "m") == 0.75
    with pytest.raises(ValueError, match="the mean 'm' is of a, c; not evaluated: c"):
        mean_of({"a": 0.5}, ["a", "c"], "m")
