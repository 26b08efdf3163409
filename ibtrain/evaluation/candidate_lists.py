"""Candidates as a person hands them over: in the command, or in a file."""

import json
from collections.abc import Sequence
from pathlib import Path

from ibtrain.evaluation.ranking import Candidates

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
