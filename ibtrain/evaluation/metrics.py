"""Scores of answers: exact match after the VQA evaluation's normalisation, with intervals.

The normalisation follows the rules of the public VQA evaluation (Antol et al. 2015, "VQA: Visual
Question Answering", and its published evaluation): punctuation, number words, articles,
contractions.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

_PUNCTUATION = '!"()*+,-/:;<=>?@[\\]_`{}'
_DIGIT_COMMA = re.compile(r"\d,\d")
_SENTENCE_PERIOD = re.compile(r"\.(?!\d)")
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
# Words that are written without their apostrophe often, and mean nothing else so.
_CONTRACTIONS = {
    word.replace("'", ""): word
    for word in re.findall(
        r"\S+",
        """
        ain't aren't can't couldn't could've didn't doesn't don't hadn't hasn't haven't he'd he's
        how'd how's i'm i've isn't it'd it'll mightn't might've mustn't must've needn't oughtn't
        shan't shouldn't should've somebody's someone's something's that's there's they'd they'll
        they're they've wasn't we've weren't what'll what're what's what've when's where'd where's
        who'd who'll who's why's won't wouldn't would've y'all you'd you'll you're you've
        """,
    )
}
_CONFIDENT = 1.959963984540054  # two-sided 95 % of the normal distribution


def normalise(text: str) -> str:
    """An answer as the VQA evaluation compares it.

    Lower case; no articles; number words up to ten as digits; a punctuation mark that touches a
    space anywhere (or any, where a comma groups digits) is removed, elsewhere it becomes a space;
    a period stays only before a digit.
    """
    text = " ".join(text.split())
    grouped = _DIGIT_COMMA.search(text) is not None
    for mark in _PUNCTUATION:
        if mark in text:
            loose = grouped or f"{mark} " in text or f" {mark}" in text
            text = text.replace(mark, "" if loose else " ")
    text = _SENTENCE_PERIOD.sub("", text)
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the prediction equals one of the accepted answers, both normalised."""
    return normalise(prediction) in {normalise(answer) for answer in answers}


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927), which holds for small counts as well.

    Raises:
        ValueError: when there is nothing to take a share of.
    """
    if not 0 <= right <= total or total == 0:
        raise ValueError(f"{right} right of {total} is no share")
    share, square = right / total, _CONFIDENT**2
    centre = (share + square / (2 * total)) / (1 + square / total)
    half = (
        _CONFIDENT
        * sqrt(share * (1 - share) / total + square / (4 * total**2))
        / (1 + square / total)
    )
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


@dataclass(frozen=True)
class Accuracy:
    """A share of correct answers, from 0 to 1, with its 95 % interval and what it is a share of."""

    value: float
    interval: tuple[float, float]
    n: int

    @classmethod
    def of(cls, correct: Sequence[bool]) -> "Accuracy":
        """The accuracy of outcomes; ValueError where there are none."""
        interval = wilson_interval(sum(correct), len(correct))
        return cls(sum(correct) / len(correct), interval, len(correct))


def accuracy_by_type(correct: Sequence[bool], types: Sequence[str]) -> dict[str, Accuracy]:
    """The accuracy within each type, types in alphabetical order."""
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for right, kind in zip(correct, types, strict=True):
        outcomes[kind].append(right)
    return {kind: Accuracy.of(outcomes[kind]) for kind in sorted(outcomes)}


def best_constant_accuracy(
    answers: Sequence[Sequence[str]], types: Sequence[str]
) -> tuple[float, dict[str, float]]:
    """What one constant answer per question type can reach, looked up in the gold answers: the
    score of a model that knows the questions' types and nothing of the images.

    Args:
        answers: the accepted answers of each question.
        types: the type of each question.

    Returns:
        The accuracy over all questions, and within each type.

    Raises:
        ValueError: when there are no questions.
    """
    if not answers:
        raise ValueError("no questions: there is no best constant answer")
    accepted: dict[str, Counter[str]] = defaultdict(Counter)
    for own, kind in zip(answers, types, strict=True):
        accepted[kind].update({normalise(answer) for answer in own})
    count = Counter(types)
    most = {kind: max(accepted[kind].values(), default=0) for kind in sorted(accepted)}
    by_type = {kind: most[kind] / count[kind] for kind in most}
    return sum(most.values()) / len(answers), by_type
