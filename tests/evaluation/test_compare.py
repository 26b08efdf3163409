import json

import pytest

from ibtrain.evaluation.compare import compare
from ibtrain.evaluation.report import write_results
from tests.evaluation.answers import answered
from tests.evaluation.results import result


def evaluated(directory, wrong, count=60, **values):
    samples = tuple(answered(n, "blue" if wrong(n) else "red") for n in range(count))
    write_results([result(samples=samples, images={}, **values)], directory)
    return directory


def test_a_paired_bootstrap(tmp_path):
    a = evaluated(tmp_path / "a", lambda n: n % 10 == 0)
    b = evaluated(tmp_path / "b", lambda n: n % 10 in (0, 1, 2))
    (one,) = compare(a, b)
    assert (one.a, one.b, one.n) == (0.9, 0.7, 60)
    assert one.difference == pytest.approx(0.2)
    # Of the 60, 12 differ: the error of the mean of their differences.
    assert one.interval == pytest.approx((0.2 - 1.96 * 0.0516, 0.2 + 1.96 * 0.0516), abs=0.012)
    assert one.a_better > 0.999
    assert "A is better" in one.sentence()
    (other,) = compare(b, a)
    assert other.interval == pytest.approx((-one.interval[1], -one.interval[0]))
    (same,) = compare(a, a)
    assert (same.difference, same.interval, same.a_better) == (0.0, (0.0, 0.0), 0.5)


def test_only_records_of_both_count(tmp_path):
    a = evaluated(tmp_path / "a", lambda n: n < 30)
    b = evaluated(tmp_path / "b", lambda n: n < 30, count=40)
    (one,) = compare(a, b)
    assert (one.n, one.only_a, one.only_b) == (40, 20, 0)
    assert one.a == one.b == 0.25
    assert "left out: 20 of A, 0 of B" in one.sentence()


def test_what_differs_in_the_making_is_told(tmp_path):
    a = evaluated(tmp_path / "a", lambda n: n < 3, about={"sources": {"f.json": "1"}})
    b = evaluated(tmp_path / "b", lambda n: n < 3, about={"sources": {"f.json": "2"}})
    assert compare(a, b)[0].notes == ("another annotation files",)


def test_what_cannot_be_compared(tmp_path):
    a = evaluated(tmp_path / "a", lambda n: False)
    b = evaluated(tmp_path / "b", lambda n: False, name="vqav2", dataset="vqav2")
    with pytest.raises(ValueError, match="no benchmark in common: gqa and vqav2"):
        compare(a, b)
    with pytest.raises(ValueError, match=r"results.json is missing; name the directory"):
        compare(a, tmp_path)
    document = json.loads((b / "results.json").read_text())
    renamed = {"benchmarks": {"gqa": document["benchmarks"]["vqav2"]}}
    (b / "results.json").write_text(json.dumps(renamed))
    with pytest.raises(ValueError, match=r"is scored by exact match in .* and by VQA accuracy in"):
        compare(a, b)
    lines = (a / "predictions.jsonl").read_text().splitlines()
    for broken, message in (("{", "not readable as JSON"), ('{"benchmark": "gqa"}', "'answers'")):
        (a / "predictions.jsonl").write_text("\n".join([lines[0], broken]))
        with pytest.raises(ValueError, match=f"predictions.jsonl:2: {message}"):
            compare(a, a)
