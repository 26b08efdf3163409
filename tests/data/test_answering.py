import pytest

from ibtrain.data.answering import check_ways, section_of

GENERATED = {"answering": "generate", "metric": "VQA accuracy"}


def test_one_way_and_several():
    assert list(check_ways(GENERATED, "f.yaml")) == [""]
    several = {
        "direct": {**GENERATED, "forms": ["visual_question_answering"]},
        "choice": {"answering": "rank", "candidates": "choices", "metric": "accuracy"},
    }
    ways = check_ways(several, "f.yaml")
    assert list(ways) == ["direct", "choice"]
    assert ways["direct"].forms == ("visual_question_answering",)
    assert section_of({}, "CIDEr") == {"answering": "generate", "metric": "CIDEr"}
    assert section_of({}, "MRR") is None
    assert section_of({}, "my own") is None
    assert section_of(GENERATED, "CIDEr") == GENERATED


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "f.yaml: evaluation: names no way of answering"),
        ({"answering": "rank"}, "metric: Field required"),
        ({**GENERATED, "metric": "VQA acuracy"}, "did you mean 'VQA accuracy'"),
        ({**GENERATED, "metrik": 1}, "metrik: unknown key; did you mean 'metric'"),
        ({**GENERATED, "answering": "guess"}, "answering: Input should be 'generate', 'rank'"),
        ({**GENERATED, "candidates": ["a"]}, "generate takes none"),
        ({"answering": "rank", "metric": "accuracy"}, "rank needs some"),
        ({"answering": "constrained", "metric": "exact match"}, "constrained needs some"),
        ({**GENERATED, "metric": "MRR"}, "MRR is of ranks, and answering is generate"),
        ({**GENERATED, "metric": "accuracy"}, "accuracy is of choices"),
        ({"answering": "rank", "metric": "AUC", "candidates": ["yes", "no"]}, "two labels"),
        ({"answering": "rank", "metric": "CIDEr", "candidates": "choices"}, "CIDEr is of captions"),
        ({"answering": "rank", "metric": "accuracy", "candidates": []}, "the list is empty"),
        ({"answering": "rank", "metric": "accuracy", "candidates": {"a": []}}, "the list is empty"),
        ({**GENERATED, "decoding": {"beams": 0}}, "decoding.beams: Input should be greater"),
    ],
)
def test_mistakes(section, message):
    with pytest.raises(ValueError, match=message):
        check_ways(section, "f.yaml")
