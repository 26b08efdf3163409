"""Candidates: as a person hands them over, in the command or in a file, and as tokens."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from ibtrain.evaluation.trie import Trie
from ibtrain.tokenization import InstructionTokenizer

Candidates = Sequence[str] | Mapping[str, Sequence[str]]
"""Texts, or labels with the texts that stand for each (a verbaliser set)."""

_LARGEST_FILE = 64 << 20
_SUFFIXES = (".txt", ".json")


def read_candidates(given: Sequence[str]) -> tuple[Candidates, tuple[str, ...]]:
    """The candidates of files and lists, in their order.

    Args:
        given: each a file (one candidate a line; or JSON: a list of texts, or an object whose keys
            are labels and whose values are the texts that stand for each), or candidates with
            commas between them.

    Returns:
        (candidates, those that were given more than once, which are kept once).

    Raises:
        ValueError: a file is missing or not as it must be, or there are no candidates.
    """
    texts: list[str] = []
    for one in given:
        path = Path(one)
        if path.suffix in _SUFFIXES or _is_file(path):
            found = _of_file(path)
            if not isinstance(found, list):
                if len(given) > 1:
                    raise ValueError(f"{path} holds labels; give it alone")
                return found, ()
            texts += found
        else:
            texts += [part.strip() for part in one.split(",") if part.strip()]
    if not texts:
        raise ValueError("the list of candidates is empty; give at least one")
    unique = list(dict.fromkeys(texts))
    twice = tuple(text for text in unique if texts.count(text) > 1) if unique != texts else ()
    return unique, twice


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a name: a list
        return False


def _of_file(path: Path) -> list[str] | dict[str, list[str]]:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE + 1)
        if len(data) > _LARGEST_FILE:
            raise ValueError(f"{path}: larger than {_LARGEST_FILE} bytes")
        text = data.decode("utf-8-sig")
        if path.suffix != ".json":
            return [line.strip() for line in text.splitlines() if line.strip()]
        content = json.loads(text)
    except OSError as error:
        raise ValueError(f"the candidates {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON: {str(error)[:200]}") from error
    if isinstance(content, dict):
        return {label: _texts(path, texts) for label, texts in content.items()}
    return _texts(path, content)


def _texts(path: Path, value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(
            f"{path}: expected a list of texts, or an object of label: list of texts that stand "
            "for it"
        )
    return value


@lru_cache(maxsize=64)
def token_trie(
    tokenizer: InstructionTokenizer, texts: tuple[str, ...]
) -> tuple[Trie, dict[str, tuple[int, ...]]]:
    """The trie of texts' tokens without their end tokens, and each text's tokens.

    Raises:
        ValueError: there are no texts, or as `candidate_tokens`.
    """
    if not texts:
        raise ValueError("the list of candidates is empty; give at least one")
    sequences = {text: candidate_tokens(tokenizer, text) for text in texts}
    return Trie.of(sequences.values()), sequences


def candidate_tokens(tokenizer: InstructionTokenizer, text: str) -> tuple[int, ...]:
    """A candidate's tokens, as an answer is tokenized, without the end token.

    Raises:
        ValueError: there are none, or so many that some were cut.
    """
    tokens = tokenizer.answer(text)[:-1]
    if not tokens:
        raise ValueError(
            f"the candidate {text!r} has no tokens, so nothing of it can be scored; remove it"
        )
    if len(tokens) >= tokenizer.max_answer_tokens:
        whole = tokenizer.language(text, add_special_tokens=False).input_ids
        if len(whole) > len(tokens):
            raise ValueError(
                f"the candidate {text[:60]!r}... has {len(whole)} tokens; an answer has at most "
                f"{tokenizer.max_answer_tokens}"
            )
    return tokens
