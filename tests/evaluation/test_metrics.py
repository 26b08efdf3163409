import pytest

from ibtrain.evaluation.metrics import (
    Accuracy,
    accuracy_by_type,
    best_constant_accuracy,
    exact_match,
    normalise,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Red", "red"),
        ("  the   Red\n circle ", "red circle"),
        ("An apple, a pear", "apple pear"),
        ("two", "2"),
        ("None", "0"),
        ("ten dogs", "10 dogs"),
        ("eleven", "eleven"),
        ("Yes.", "yes"),
        ("yes!", "yes"),
        ("yes ?", "yes"),
        ("(b)", "b"),
        ("red-blue", "red blue"),
        ("red - blue", "red blue"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("3.5.", "3.5"),
        ("p.m.", "pm"),
        ("it's", "it's"),
        ("dont know", "don't know"),
        ("its", "its"),
        ("the", ""),
        ("", ""),
        ("top left", "top left"),
    ],
)
def test_normalise(text, expected):
    assert normalise(text) == expected
    assert normalise(normalise(text)) == expected


def test_exact_match():
    assert exact_match("The red one", ["Red 1"])
    assert exact_match("a cat.", ["dog", "Cat"])
    assert not exact_match("red circle", ["red"])
    assert not exact_match("", ["red"])


def test_wilson_interval():
    low, high = wilson_interval(80, 100)
    assert low == pytest.approx(0.7112, abs=1e-4)
    assert high == pytest.approx(0.8666, abs=1e-4)
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(10, 10)[1] == 1.0
    assert wilson_interval(0, 10)[1] == pytest.approx(0.2775, abs=1e-4)
    narrow = wilson_interval(8000, 10000)
    assert narrow[1] - narrow[0] < 0.02
    for right, total in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="no share"):
            wilson_interval(right, total)


def test_accuracy_by_type():
    by_type = accuracy_by_type([True, False, True, True], ["b", "b", "a", "b"])
    assert list(by_type) == ["a", "b"]
    assert (by_type["a"].value, by_type["a"].n) == (1.0, 1)
    assert by_type["b"].value == pytest.approx(2 / 3)
    assert by_type["b"].interval == wilson_interval(2, 3)
    with pytest.raises(ValueError, match="no share"):
        Accuracy.of([])


def test_best_constant_answers_each_type_by_itself():
    answers = [["red"], ["Red."], ["blue"], ["yes"], ["no"], ["no"], ["no"]]
    types = ["color"] * 3 + ["exists"] * 4
    overall, by_type = best_constant_accuracy(answers, types)
    assert by_type == {"color": pytest.approx(2 / 3), "exists": 0.75}
    assert overall == pytest.approx(5 / 7)


def test_best_constant_counts_a_question_once():
    assert best_constant_accuracy([["red", "The red"], ["blue", "red"]], ["c", "c"])[0] == 1.0
    with pytest.raises(ValueError, match="no questions"):
        best_constant_accuracy([], [])
