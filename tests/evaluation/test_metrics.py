"""Every metric on examples worked by hand (the official rules), and against reference packages."""

import random

import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from ibtrain.data.answering import METRICS
from ibtrain.data.records import Answer
from ibtrain.evaluation.metric_base import MetricError
from ibtrain.evaluation.metrics import (
    direct_answer_accuracy,
    exact_match,
    ivqa_accuracy,
    metric,
    vqa_accuracy,
)
from ibtrain.evaluation.rank_metrics import area_under_curve, average_precision, ndcg, rank_of
from tests.evaluation.answers import answered


def counted(**counts: int) -> tuple[Answer, ...]:
    return tuple(Answer(text, float(count)) for text, count in counts.items())


@pytest.mark.parametrize(
    ("agreeing", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)]
)
def test_vqa_accuracy_leaves_one_out(agreeing, expected):
    given = counted(blue=10 - agreeing, **({"red": agreeing} if agreeing else {}))
    assert vqa_accuracy("Red.", given) == pytest.approx(expected)


def test_vqa_accuracy_by_annotators_one_by_one():
    """As the official code has it: each annotator against the other nine."""
    source = random.Random(0)
    for _ in range(200):
        texts = [source.choice(["red", "Blue", "the red", "two", "2"]) for _ in range(10)]
        said = source.choice(["red", "blue", "2"])
        from ibtrain.evaluation.normalisation import normalise

        alike = len(set(texts)) == 1
        compared = texts if alike else [normalise(text) for text in texts]
        total = 0.0
        for own in range(10):
            others = [text for index, text in enumerate(compared) if index != own]
            total += min(1.0, others.count(said) / 3)
        counts = {text: texts.count(text) for text in dict.fromkeys(texts)}
        answers = tuple(Answer(text, float(count)) for text, count in counts.items())
        assert vqa_accuracy(said, answers) == pytest.approx(total / 10)


def test_vqa_accuracy_of_few_annotators():
    assert vqa_accuracy("red", counted(red=5)) == 1.0
    assert vqa_accuracy("red", counted(red=1)) == 1.0  # by the rule: 0, which is of no use
    assert vqa_accuracy("The red", counted(red=1, blue=2)) == 1.0
    assert vqa_accuracy("green", counted(red=3)) == 0.0
    score = metric("VQA accuracy").score([answered(0), answered(1, answers={"red": 10})])
    assert score.notes == (
        "1 of 2 questions have fewer than 4 answers: exact match with any of them",
    )


def test_human_answers_that_are_all_equal_are_left_as_they_are():
    assert vqa_accuracy("yes", (Answer("Yes", 10.0),)) == 0.0
    assert vqa_accuracy("yes", (Answer("Yes", 9.0), Answer("no", 1.0))) == 1.0


def test_direct_answers():
    assert direct_answer_accuracy("red", counted(red=3, blue=7)) == 1.0
    assert direct_answer_accuracy("red", counted(red=1, blue=9)) == pytest.approx(1 / 3)
    assert direct_answer_accuracy("Red", counted(red=3)) == 0.0
    hard = answered(1, answers={"red": 10}, details={"difficult_direct_answer": True})
    score = metric("direct-answer accuracy").score([answered(0, answers={"blue": 10}), hard])
    assert (score.value, score.n, score.values) == (0.0, 1, (0.0, None))


def test_ivqa():
    assert ivqa_accuracy("Red", counted(red=2, blue=3)) == 1.0
    assert ivqa_accuracy("red", counted(red=1, blue=4)) == 0.5
    assert ivqa_accuracy("green", counted(red=1, blue=4)) == 0.0


def test_exact_matches():
    assert exact_match("The red one", ["Red 1"])
    assert not exact_match("red circle", ["red"])
    assert not exact_match("", ["red"])
    samples = [answered(0, "Red "), answered(1, "a red"), answered(2, "blue")]
    assert metric("exact match").score(samples).values == (1.0, 1.0, 0.0)
    for name in ("exact match ignoring case", "top-1 accuracy"):
        assert metric(name).score(samples).values == (1.0, 0.0, 0.0)


def test_choices():
    chosen = answered(0, "dog", ["dog"], candidates=("cat", "dog"), scores=(-2.0, -1.0))
    other = answered(1, "cat", ["dog"], candidates=("cat", "dog"), scores=(-1.0, -2.0))
    score = metric("multiple-choice accuracy").score([chosen, other])
    assert (score.value, score.values) == (0.5, (1.0, 0.0))
    with pytest.raises(MetricError, match="q0: nothing to choose from"):
        metric("accuracy").score([answered(0)])


def test_vizwiz():
    samples = [
        answered(0, "unanswerable", {"unanswerable": 10}, details={"answerable": 0}),
        answered(1, "red", {"red": 10}, details={"answerable": 1}),
        answered(2, "unsuitable", {"red": 10}, details={"answerable": 1}),
        answered(3, "blue", {"unanswerable": 10}, details={"answerable": 0}),
    ]
    score = metric("VizWiz accuracy").score(samples)
    assert score.value == 0.5
    # Said of two, one of which it is true of (precision 1/2, recall 1/2); then all (1/2, 1).
    assert score.also == {"predicted unanswerable": 0.5, "unanswerable average precision": 0.5}
    assert metric("VizWiz accuracy").score([answered(0)]).also == {"predicted unanswerable": 0.0}


def test_average_precision_is_that_of_scikit_learn():
    source = random.Random(1)
    for _ in range(30):
        scores = [source.choice((0.0, 0.5, 1.0, source.random())) for _ in range(20)]
        truth = [source.random() < 0.4 for _ in range(19)] + [True]
        assert average_precision(scores, truth) == pytest.approx(
            average_precision_score(truth, scores)
        )


def test_auc():
    assert area_under_curve([0.9, 0.8, 0.3, 0.1], [True, False, True, False]) == 0.75
    assert area_under_curve([0.5, 0.5], [True, False]) == 0.5
    source = random.Random(2)
    for _ in range(30):
        scores = [source.choice((0.25, 0.5, source.random())) for _ in range(40)]
        labels = [True, False] + [source.random() < 0.3 for _ in range(38)]
        assert area_under_curve(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    with pytest.raises(MetricError, match="both labels"):
        area_under_curve([0.1, 0.2], [True, True])


def meme(index: int, logit: float, label: int):
    return answered(
        index,
        "yes" if logit > 0 else "no",
        ["yes" if label else "no"],
        candidates=("yes", "no"),
        scores=(logit, 0.0),
    )


def test_auc_of_memes_with_its_interval():
    score = metric("AUC").score([meme(0, 0.9, 1), meme(1, 0.8, 0), meme(2, 0.3, 1), meme(3, -1, 0)])
    assert score.value == 0.75
    assert score.also == {"accuracy": 0.75}
    source = random.Random(3)
    many = [meme(n, source.gauss(1.0 * (n % 2), 1.0), n % 2) for n in range(400)]
    score = metric("AUC").score(many)
    # Hanley and McNeil (1982) for an area of 0.76 and 200 of each: a standard error of 0.0238.
    assert score.value == pytest.approx(0.76, abs=0.05)
    assert (score.interval[1] - score.interval[0]) / 3.92 == pytest.approx(0.0238, abs=0.003)
    with pytest.raises(MetricError, match="AUC needs the scores of two labels"):
        metric("AUC").score([answered(0)])


def round_of(index: int, rank: int, options: int = 100, **details):
    scores = [-float(place) for place in range(options)]
    return answered(
        index,
        candidates=tuple(map(str, range(options))),
        scores=tuple(scores),
        details={"correct_choice": rank - 1, **details},
    )


def test_visdial():
    score = metric("MRR").score([round_of(0, 1), round_of(1, 4), round_of(2, 20)])
    assert score.value == pytest.approx(0.4333, abs=1e-4)
    assert score.also == {
        "R@1": pytest.approx(1 / 3),
        "R@5": pytest.approx(2 / 3),
        "R@10": pytest.approx(2 / 3),
        "mean rank": pytest.approx(8.3333, abs=1e-4),
    }
    assert rank_of([1.0, 1.0, 0.5], 0) == 2  # ties are broken against the model
    assert ndcg([3.0, 2.0, 1.0], [0.0, 1.0, 0.5]) == pytest.approx(0.4796, abs=1e-4)
    assert ndcg([1.0, 3.0, 2.0], [0.0, 1.0, 0.5]) == 1.0
    dense = metric("MRR").score([round_of(0, 1, 3, relevance=[0.0, 1.0, 0.5]), round_of(1, 1)])
    assert dense.also["NDCG"] == pytest.approx(0.4796, abs=1e-4)
    with pytest.raises(MetricError, match="q0: MRR needs to know which candidate is right"):
        metric("MRR").score([answered(0)])


def test_cider_of_samples():
    samples = [
        answered(0, "a red ball on the grass", ["a red ball on the grass", "a ball"]),
        answered(1, "", ["two dogs run in a field"]),
        answered(2, "a man", ["a man on a horse", "someone rides a horse"]),
    ]
    score = metric("CIDEr").score(samples)
    assert score.values[1] == 0.0
    assert score.value == pytest.approx(sum(score.values) / 3)
    assert score.notes[1:] == ("1 captions are empty",)
    assert "document frequencies of 3 images" in score.notes[0]


def test_every_name_is_a_metric():
    assert [metric(name).name for name in METRICS] == list(METRICS)


def test_an_interval_is_by_picture():
    alone = [answered(n, "red" if n % 4 else "blue") for n in range(200)]
    together = [
        answered(n, "red" if n // 10 % 4 else "blue", group=str(n // 10)) for n in range(200)
    ]
    narrow, wide = (metric("exact match").score(own).interval for own in (alone, together))
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])


def test_nothing_that_counts():
    hard = answered(0, details={"difficult_direct_answer": True})
    with pytest.raises(MetricError, match="none of 1 samples counts"):
        metric("direct-answer accuracy").score([hard])


def test_a_pair_is_resampled_together():
    ours = [answered(n, "red" if n % 3 else "blue") for n in range(90)]
    others = [answered(n, "red" if n % 3 else "green") for n in range(90)]
    by_name = metric("exact match")
    sides = [(own, [float(v) for v in by_name.values(own)]) for own in (ours, others)]
    assert not by_name.paired(*sides).any()
    memes = [meme(n, random.Random(n).gauss(n % 2, 1), n % 2) for n in range(60)]
    auc = metric("AUC")
    side = (memes, [float(v) for v in auc.values(memes)])
    assert not auc.paired(side, side).any()
