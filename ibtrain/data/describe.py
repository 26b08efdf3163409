"""`ibtrain data describe DIR`: a first version of a dataset's YAML, by looking at its files.

A folder of images with a list in CSV, JSON Lines or JSON (one for each split) is looked at: which
column names images that are there, which holds questions, answers or captions. What is written is
read at once by the reader that it names, so that it works before anybody edits it.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from ibtrain.data import catalog, readers
from ibtrain.data.readers.lists import entries
from ibtrain.data.video import IMAGE_SUFFIXES
from ibtrain.files import write_whole

LOOKED_AT = 200
"""Entries of a list from whose values its columns are told."""
_MOST_FILES = 1_000_000
_MOST_ROOTS = 4
_LISTS = (".csv", ".tsv", ".jsonl", ".json")
_LIST_FOLDERS = ("", "annotations")
_NAMES = {
    "question": ("question", "query", "prompt", "instruction", "text_input", "input", "q"),
    "answer": ("answers", "answer", "label", "labels", "response", "target", "output", "a"),
    "caption": ("caption", "captions", "text", "description", "sentence", "title"),
    "id": ("question_id", "id"),
}
_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_SHORT_WORDS = 4
_PROMPTS = {
    "question_answer": {"visual_question_answering": "Question: {question} Short answer:"},
    "long_answer": {"visual_question_answering": "{question}"},
    "caption_pairs": {"captioning": "A short image description:"},
}


@dataclass(frozen=True)
class Description:
    """What was written: where, what it says, and what reading the first entries with it gave."""

    file: Path
    name: str
    reader: str
    columns: dict[str, str]
    """Which column is taken for what."""
    splits: dict[str, str]
    """The list of each split."""
    examples: int
    rejected: int
    first_reason: str
    """Why the first one was rejected."""


@dataclass(frozen=True)
class _Columns:
    """What the columns of a list are taken for."""

    reader: str
    taken: dict[str, str]
    """For example question: query."""
    roots: tuple[str, ...]
    labelled: bool
    short_answers: bool


def describe(raw: Path, out: Path | None = None, name: str | None = None) -> Description:
    """Looks at a folder and writes the YAML of its dataset.

    Args:
        raw: holds the lists (or annotations/ does) and, at any depth, the images.
        out: the YAML file to write; default: NAME.yaml in the working directory.
        name: of the dataset; default: the folder's.

    Raises:
        ValueError: there is no list, none of its columns names images that are there, or the list
            cannot be told to be of questions, captions or conversations.
        FileExistsError: `out` is there already.
    """
    if not raw.is_dir():
        raise ValueError(f"{raw} is not a folder; give the one that holds images and their list")
    name = _name_of(raw, name)
    out = Path(f"{name}.yaml") if out is None else out
    if out.exists():
        raise FileExistsError(f"{out} exists; name another file with --out, or remove it")
    if out.suffix not in (".yaml", ".yml") or not out.absolute().parent.is_dir():
        raise ValueError(f"{out} cannot be written: name a .yaml file in a folder there is")
    lists = _lists(raw)
    pictures = _pictures(raw)
    splits = {split: _columns(file, pictures) for split, file in lists.items()}
    columns = next(iter(splits.values()))
    for split, found in splits.items():
        if (found.reader, found.taken) != (columns.reader, columns.taken) and found.labelled:
            first = next(iter(lists.values()))
            raise ValueError(
                f"{lists[split]} has other columns than {first} ({_said(found.taken)}; "
                f"{_said(columns.taken)}); name them alike, or describe each in a folder of its own"
            )
    content = _content(name, lists, splits)
    entry = catalog.check_entry(content, str(out))
    examples, rejected, reason = _tried(raw, entry)
    if not examples:
        raise ValueError(
            f"no entry of {next(iter(lists.values()))} gives an example: {reason or 'it is empty'}"
        )
    write_whole(out, _text(content, raw, columns.taken))
    files = {split: file.name for split, file in lists.items()}
    return Description(out, name, columns.reader, columns.taken, files, examples, rejected, reason)


def _name_of(raw: Path, name: str | None) -> str:
    """The dataset's name: as given, or the folder's with what may stand in one."""
    if name is not None:
        if re.fullmatch(r"[a-z0-9][a-z0-9_\-]{0,63}", name) is None:
            raise ValueError(f"the name {name!r} may have lower-case letters, digits, _ and - only")
        return name
    plain = re.sub(r"[^a-z0-9_-]+", "_", raw.resolve().name.lower()).strip("_-")[:60]
    known = {entry.name for entry in catalog.entries()}
    return f"my_{plain}" if plain in known else plain or "my_dataset"


def _lists(raw: Path) -> dict[str, Path]:
    """The list of each split, train first.

    Raises:
        ValueError: there is none, or two that could be the same split.
    """
    files = sorted(
        path
        for folder in _LIST_FOLDERS
        if (raw / folder).is_dir()
        for path in (raw / folder).iterdir()
        if path.suffix.lower() in _LISTS and path.is_file() and not path.name.startswith(".")
    )
    if not files:
        raise ValueError(
            f"{raw} holds no list: put a .csv, .jsonl or .json file beside the images (or into "
            "annotations/) whose columns are image, question and answer, or image and caption"
        )
    found: dict[str, Path] = {}
    for file in files:
        split = _split_of(file) or "train"
        if split in found:
            raise ValueError(
                f"{found[split]} and {file} could both be the split {split!r}; keep one, or name "
                "the files of different splits so (train.csv, val.csv, test.csv)"
            )
        found[split] = file
    return {split: found[split] for split in _SPLITS if split in found}


def _split_of(file: Path) -> str | None:
    words = re.split(r"[^a-z]+", file.stem.lower())
    return next((s for s, names in _SPLITS.items() if any(n in words for n in names)), None)


def _pictures(raw: Path) -> dict[str, set[str]]:
    """For each folder that may be a root of images, the relative paths of those below it.

    Raises:
        ValueError: there is no image.
    """
    found: list[str] = []
    seen = 0
    for folder, below, names in os.walk(raw):
        below[:] = sorted(name for name in below if not name.startswith("."))
        seen += len(names)
        relative = os.path.relpath(folder, raw)
        found += [
            os.path.normpath(f"{relative}/{name}")
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES)
        ]
        if seen > _MOST_FILES:
            break
    if not found:
        raise ValueError(f"{raw} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    roots: dict[str, set[str]] = {}
    for path in found:
        parts = path.split("/")
        for depth in range(min(len(parts), 4)):
            root = "/".join(parts[:depth]) or "."
            roots.setdefault(root, set()).add("/".join(parts[depth:]))
    return roots


def _columns(file: Path, pictures: Mapping[str, set[str]]) -> _Columns:
    """What the columns of a list are, told by their names and values."""
    values = [value for _, value in islice(entries(file), LOOKED_AT) if isinstance(value, dict)]
    if not values:
        raise ValueError(f"{file} has no entry that is an object or a row; is it a list?")
    keys = list(dict.fromkeys(key for value in values for key in value))
    image, roots = _image_column(file, values, keys, pictures)
    if any(isinstance(value.get("conversations"), list) for value in values):
        if image != "image":
            raise ValueError(f"{file} has conversations; call its column {image!r} 'image'")
        return _Columns("conversation", {"image": image}, roots, True, False)
    others = [key for key in keys if key != image]
    identity = _named(others, "id")
    others = [key for key in others if key != identity and _holds_text(values, key)]
    question, answer = _question_and_answer(values, others)
    caption = _named(others, "caption")
    taken = {"image": image}
    if question is not None:
        taken["question"] = question
        if answer is not None:
            taken["answer"] = answer
        lengths = [len(text.split()) for text in _texts(values, answer)] or [1]
        short = median(lengths) <= _SHORT_WORDS
        return _Columns("question_answer", taken, roots, answer is not None, short)
    if caption is None and len(others) == 1:
        caption = others[0]
    if caption is None:
        raise ValueError(
            f"{file}: which column holds questions and answers, or captions? There are "
            f"{', '.join(map(repr, others)) or 'none with text'} beside {image!r}; call them "
            "question and answer, or caption"
        )
    return _Columns("caption_pairs", taken | {"caption": caption}, roots, True, False)


def _image_column(
    file: Path,
    values: Sequence[dict[str, Any]],
    keys: Sequence[str],
    pictures: Mapping[str, set[str]],
) -> tuple[str, tuple[str, ...]]:
    """The column whose values are most often images that are there, and below which folders."""
    best: tuple[int, str, tuple[str, ...]] = (0, "", ())
    for key in keys:
        named = [
            text.removeprefix("./")
            for value in values
            if isinstance(text := value.get(key), str) and text
        ]
        hits, roots = _roots_of(named, pictures)
        if hits > best[0]:
            best = (hits, key, roots)
    if not best[0]:
        example = next(iter(next(iter(pictures.values()))))
        raise ValueError(
            f"{file}: no column names images that are in the folder (such as {example!r}); a "
            "column must hold their paths, as seen from the folder or from one within it"
        )
    return best[1], best[2]


def _roots_of(
    named: Sequence[str], pictures: Mapping[str, set[str]]
) -> tuple[int, tuple[str, ...]]:
    """How many of the names are images, and the fewest folders below which they are found."""
    left = set(named)
    roots: list[str] = []
    while left and len(roots) < _MOST_ROOTS:
        root = max(pictures, key=lambda root: (len(left & pictures[root]), -len(root)))
        found = left & pictures[root]
        if not found:
            break
        roots.append(root)
        left -= found
    return sum(name not in left for name in named), tuple(roots)


def _question_and_answer(
    values: Sequence[dict[str, Any]], keys: Sequence[str]
) -> tuple[str | None, str | None]:
    """The columns of questions and answers by their names, else by what they hold."""
    question, answer = _named(keys, "question"), _named(keys, "answer")
    if question is None:
        asked = Counter({k: sum(t.rstrip().endswith("?") for t in _texts(values, k)) for k in keys})
        for key, count in asked.most_common(1):
            question = key if 2 * count > len(values) else None
    if question is not None and answer is None:
        others = [key for key in keys if key not in (question, _named(keys, "caption"))]
        answer = others[0] if len(others) == 1 else _named(keys, "caption")
    return question, answer


def _named(keys: Sequence[str], what: str) -> str | None:
    """The column that is called what such columns are called; the likeliest name wins."""
    by_plain = {key.lower().strip().replace(" ", "_"): key for key in reversed(keys)}
    return next((by_plain[name] for name in _NAMES[what] if name in by_plain), None)


def _holds_text(values: Sequence[dict[str, Any]], key: str) -> bool:
    return 2 * len(_texts(values, key)) >= len(values)


def _texts(values: Sequence[dict[str, Any]], key: str | None) -> list[str]:
    """The texts of a column: of strings, lists of them, or lists of objects with "answer"."""
    found: list[str] = []
    for value in values:
        given = value.get(key) if key is not None else None
        for one in given if isinstance(given, list) else [given]:
            text = one.get("answer") if isinstance(one, dict) else one
            if isinstance(text, int | float) and not isinstance(text, bool):
                text = str(text)
            if isinstance(text, str) and text.strip():
                found.append(text)
    return found


def _content(
    name: str, lists: Mapping[str, Path], splits: Mapping[str, _Columns]
) -> dict[str, Any]:
    """The values of the YAML file."""
    first = next(iter(splits.values()))
    roots = list(dict.fromkeys(root for columns in splits.values() for root in columns.roots))
    renamed = {what: column for what, column in first.taken.items() if what != column}
    if renamed.get("answer") == "answers":
        del renamed["answer"]  # the reader knows both
    content: dict[str, Any] = {
        "name": name,
        "task": {
            "caption_pairs": "captioning",
            "conversation": "llava_instruct",
        }.get(first.reader, "image_question_answering"),
        "reader": first.reader,
    }
    if renamed:
        content["reader_options"] = renamed
    content["image_roots"] = roots
    content["splits"] = {
        split: {"files": [[lists[split].name]]} | ({} if columns.labelled else {"labelled": False})
        for split, columns in splits.items()
    }
    if first.reader != "conversation":
        long = first.reader == "question_answer" and not first.short_answers
        content["prompts"] = _PROMPTS["long_answer" if long else first.reader]
        content["templates"] = list(content["prompts"])
    return content


def _tried(raw: Path, entry: catalog.DatasetEntry) -> tuple[int, int, str]:
    """Examples and rejected entries among the first of every split, and the first reason."""
    examples, rejected, reason = 0, 0, ""
    for split in entry.splits:
        found: Iterator[Any] = islice(readers.read(raw, split, entry), LOOKED_AT)
        for one in found:
            if isinstance(one, readers.Rejected):
                rejected += 1
                reason = reason or one.reason
            else:
                examples += 1
    return examples, rejected, reason


def _said(taken: Mapping[str, str]) -> str:
    return ", ".join(f"{what}: {column}" for what, column in taken.items())


_COMMENTS = {
    "name": "Lower-case letters, digits, _ and -; it names the dataset in records and metrics.",
    "task": "Where text is read off the images, question_answering_with_reading or\n"
    "# captioning_with_reading: they are then neither cropped nor mirrored.",
    "reader": "What reads the list.",
    "reader_options": "Which columns it takes, where they are called otherwise.",
    "image_roots": "Folders of the images, as seen from the raw directory.",
    "splits": "The first one is prepared where none is named.",
    "prompts": "What evaluation asks.",
    "templates": "Instructions to train with: shipped ones, or a .yaml file beside this one.",
}


def _text(content: Mapping[str, Any], raw: Path, taken: Mapping[str, str]) -> str:
    """The file, each key with what it is for."""
    name = content["name"]
    head = (
        f"# A first version, written by looking at {_one_line(raw.name)} "
        f"({_one_line(_said(taken))}).\n# Look it over, then\n"
        f"#   ibtrain data prepare THIS_FILE --raw DIR --out shards/{name}\n"
    )
    blocks = []
    for key, value in content.items():
        dumped = yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, width=96)
        blocks.append(f"\n# {_COMMENTS[key]}\n{dumped}")
    return head + "".join(blocks)


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:200]
