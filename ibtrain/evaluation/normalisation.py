"""Answers as the public evaluation of VQA compares them (Antol et al. 2015, arXiv 1505.00468; the
rules and the list of contractions are those of its published code, second version).
"""

import re

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
# Each is also written with one of its apostrophes missing. The published list has capitals for
# "I'm" and "I've", which a lower-case word never meets, so those are not among them.
_WITH_APOSTROPHES = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    word[: match.start()] + word[match.end() :]: word
    for word in _WITH_APOSTROPHES.split()
    for match in re.finditer("'", word)
}


def normalise(text: str) -> str:
    """An answer as the VQA evaluation compares it.

    A punctuation mark that touches a space anywhere in the text is removed, and so are all where a
    comma groups digits; elsewhere a mark becomes a space. A full stop stays before a digit alone.
    Then lower case, number words up to ten as digits, no articles, contractions with their
    apostrophe.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    grouped = _DIGIT_COMMA.search(text) is not None
    left = text
    for mark in _PUNCTUATION:
        # What the text was decides, not what earlier marks have left of it.
        loose = grouped or f"{mark} " in text or f" {mark}" in text
        left = left.replace(mark, "" if loose else " ")
    words = (_NUMBERS.get(word, word) for word in _PERIOD.sub("", left).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
