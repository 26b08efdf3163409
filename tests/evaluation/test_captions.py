import random

import pytest
from pycocoevalcap.cider.cider_scorer import CiderScorer

from ibtrain.evaluation import captions
from ibtrain.evaluation.captions import cider, tokenize, tokenize_by_rules
from tests.evaluation.caption_texts import CAPTIONS


def drawn(count: int, seed: int = 0) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Captions and references of changed words of true ones."""
    source = random.Random(seed)
    words = [tokenize_by_rules(caption) for caption in CAPTIONS]
    everything = [word for own in words for word in own]

    def changed(own: list[str]) -> list[str]:
        return [source.choice(everything) if source.random() < 0.2 else word for word in own]

    references = [
        [changed(words[index % len(words)]) for _ in range(source.choice((1, 5, 10)))]
        for index in range(count)
    ]
    said = [changed(own[0])[: source.randint(1, 12)] for own in references]
    said[3] = []
    said[4] = references[4][0]
    said[5] = said[5] * 4
    return said, references


@pytest.mark.parametrize("count", [6, 90])
def test_cider_is_that_of_pycocoevalcap(count):
    said, references = drawn(count)
    scorer = CiderScorer(n=4, sigma=6.0)
    for caption, own in zip(said, references, strict=True):
        scorer += (" ".join(caption), [" ".join(one) for one in own])
    mean, expected = scorer.compute_score()
    scores = cider(said, references)
    assert scores == pytest.approx(list(expected), abs=1e-6)
    assert sum(scores) / len(scores) == pytest.approx(mean, abs=1e-6)
    assert scores[3] == 0.0
    assert max(scores) > 1


def test_a_caption_without_reference():
    with pytest.raises(ValueError, match="no reference"):
        cider([["a"]], [[]])
    assert cider([], []) == []


def test_rules_find_the_words_that_stanfords_tokenizer_finds():
    """Measured on captions as people write them, with what a tokenizer may stumble over."""
    if captions._jar() is None:
        pytest.skip("no Java")
    by_java, said = tokenize(CAPTIONS)
    assert said == "PTB (Java)"
    assert by_java[0] == ["a", "man", "riding", "a", "wave", "on", "top", "of", "a", "surfboard"]
    by_rules = [tokenize_by_rules(caption) for caption in CAPTIONS]
    assert by_rules == by_java


def test_without_java(monkeypatch):
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)
    words, said = tokenize(["A dog's ball, isn't it?"])
    assert said == "PTB rules (Python)"
    assert words == [["a", "dog", "'s", "ball", "is", "n't", "it"]]


def test_empty_captions_keep_their_line():
    assert tokenize(["", "a\ndog", ""])[0] == [[], ["a", "dog"], []]
    assert tokenize([])[0] == []
