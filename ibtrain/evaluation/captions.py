"""CIDEr of captions, as pycocoevalcap computes it.

CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726): the mean over n = 1..4 of the cosine of tf-idf
vectors of n-grams, counts clipped by the reference's, times a Gaussian of the difference in length
(sigma 6), times 10; published figures are 100 times the mean. Document frequencies are those of the
references that are evaluated, so a part of a set scores otherwise than the whole.

Both sides go through the Penn Treebank's tokenization, lower case, without punctuation. Where Java
and pycocoevalcap's copy of Stanford's tokenizer are there, that is used, else the rules below.
"""

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import exp, log, sqrt
from pathlib import Path

_ORDERS = 4
_SIGMA = 6.0
_JAR = "tokenizer/stanford-corenlp-3.4.1.jar"
# pycocoevalcap's list; "-lrb-" is not in it, so brackets stay, as words.
_REMOVED = frozenset(
    ("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", *".?!,:-;", "--", "...")
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
# What stands together in the Penn Treebank: numbers with their marks, abbreviations of letters,
# words with hyphens; n't and 's come off the word before.
_TOKEN = re.compile(
    r"""
    (?:[a-z]\.){2,}                              # u.s.
    | (?:mr|mrs|ms|dr|st|jr|sr|vs|etc|no)\.(?=\s|$)
    | \d+(?:[.,:/]\d+)*                          # 1,000 3.5 10:30 1/2
    | [^\W\d_]+(?=n't\b)                         # do|n't
    | n't\b
    | '(?:s|re|ve|ll|d|m)\b
    | \w+(?:[-&/]\w+|'(?!(?:s|re|ve|ll|d|m|t)\b)\w+)*
    | \.{3} | -- | \S
    """,
    re.VERBOSE,
)
_CONTRACTED = {"cannot": ("can", "not"), "gonna": ("gon", "na"), "wanna": ("wan", "na")}


def tokenize(captions: Sequence[str]) -> tuple[list[list[str]], str]:
    """The words of each caption, and what found them: "PTB (Java)" or "PTB rules (Python)"."""
    jar = _jar()
    if jar is not None and captions:
        return _by_java(captions, jar), "PTB (Java)"
    return [tokenize_by_rules(caption) for caption in captions], "PTB rules (Python)"


def tokenize_by_rules(caption: str) -> list[str]:
    """The words of a caption by rules that come close to Stanford's tokenizer."""
    found: list[str] = []
    for token in _TOKEN.findall(caption.lower().replace("\u2019", "'").replace('"', " ")):
        if token not in _REMOVED:
            found += _CONTRACTED.get(token, (_BRACKETS.get(token, token),))
    return found


def _jar() -> Path | None:
    """pycocoevalcap's copy of Stanford's tokenizer, where Java can run it."""
    package = find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations or shutil.which("java") is None:
        return None
    jar = Path(next(iter(package.submodule_search_locations))) / _JAR
    return jar if jar.is_file() else None


def _by_java(captions: Sequence[str], jar: Path) -> list[list[str]]:
    text = "\n".join(" ".join(caption.split()) for caption in captions)
    tokenizer = ("-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer")
    done = subprocess.run(
        ["java", *tokenizer, "-preserveLines", "-lowerCase", "-encoding", "utf-8"],
        input=text.encode(),
        capture_output=True,
    )
    lines = done.stdout.decode().split("\n")[: len(captions)]
    if done.returncode or len(lines) < len(captions):
        raise RuntimeError(
            f"Stanford's tokenizer failed: {done.stderr.decode(errors='replace').strip()[-300:]}"
        )
    return [[word for word in line.split() if word not in _REMOVED] for line in lines]


@dataclass(frozen=True)
class _Vectors:
    """tf-idf by n-gram, of each order; their norms; how many words."""

    weights: tuple[dict[tuple[str, ...], float], ...]
    norms: tuple[float, ...]
    length: int


def cider(
    captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> list[float]:
    """CIDEr-D of each caption, from 0 to 10.

    Args:
        captions: words of each.
        references: for each caption the words of its references, at least one.

    Raises:
        ValueError: a caption has no reference.
    """
    if not all(references):
        raise ValueError("a caption has no reference to be held against")
    counted = [[Counter(_ngrams(words)) for words in own] for own in references]
    frequency: Counter[tuple[str, ...]] = Counter()
    for own in counted:
        frequency.update({ngram for counts in own for ngram in counts})
    total = log(len(references)) if references else 0.0

    def vectors(counts: Counter[tuple[str, ...]]) -> _Vectors:
        weights: tuple[dict[tuple[str, ...], float], ...] = tuple({} for _ in range(_ORDERS))
        for ngram, count in counts.items():
            weights[len(ngram) - 1][ngram] = count * (total - log(max(1.0, frequency[ngram])))
        norms = tuple(sqrt(sum(weight**2 for weight in order.values())) for order in weights)
        # As pycocoevalcap measures it: by the number of pairs of words.
        length = sum(count for ngram, count in counts.items() if len(ngram) == 2)
        return _Vectors(weights, norms, length)

    scores = []
    for words, own in zip(captions, counted, strict=True):
        said = vectors(Counter(_ngrams(words)))
        likeness = [_likeness(said, vectors(reference)) for reference in own]
        scores.append(10 * sum(likeness) / len(likeness))
    return scores


def _ngrams(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for order in range(1, _ORDERS + 1):
        for begin in range(len(words) - order + 1):
            yield tuple(words[begin : begin + order])


def _likeness(said: _Vectors, reference: _Vectors) -> float:
    closeness = exp(-((said.length - reference.length) ** 2) / (2 * _SIGMA**2))
    total = 0.0
    for order in range(_ORDERS):
        known = reference.weights[order]
        product = sum(
            min(weight, known[ngram]) * known[ngram]
            for ngram, weight in said.weights[order].items()
            if ngram in known
        )
        norm = said.norms[order] * reference.norms[order]
        total += product / norm if norm else product
    return closeness * total / _ORDERS
