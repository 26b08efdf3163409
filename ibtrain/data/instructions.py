"""Examples become instructions: templates with named slots, one YAML file per task.

Every variant is rendered into the record, and reading chooses one, so a shard can be read without
this module. The first template of a file is the prompt that evaluation uses. A held-out dataset
gets its evaluation prompt and nothing else.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Formatter

import yaml

from ibtrain.data.catalog import get
from ibtrain.data.records import Example

TEMPLATE_DIRECTORY = Path(__file__).parent / "templates"
MINIMUM_TEMPLATES = 10
_KEYS = {"slots", "templates"}


@dataclass(frozen=True)
class TemplateFile:
    """The templates of one task, each of which names every slot in `slots` exactly once."""

    task: str
    slots: tuple[str, ...]
    templates: tuple[str, ...]


def load_templates(path: Path) -> TemplateFile:
    """Reads and checks a template file; its name without the suffix is the task.

    Raises:
        ValueError: naming the file, the line and what to change.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{path}: expected the keys {sorted(_KEYS)} at the top of the file")
    sections = {key.value: value for key, value in root.value}
    if set(sections) != _KEYS:
        raise ValueError(f"{path}: expected the keys {sorted(_KEYS)}, found {sorted(sections)}")
    slots = tuple(text for text, _ in _texts(path, "slots", sections["slots"]))
    entries = _texts(path, "templates", sections["templates"])
    seen: dict[str, int] = {}
    for text, line in entries:
        _check_slots(text, slots, f"{path}:{line}")
        normal = " ".join(text.casefold().split())
        if normal in seen:
            raise ValueError(
                f"{path}:{line}: {text!r} repeats the template of line {seen[normal]}; remove one"
            )
        seen[normal] = line
    if len(entries) < MINIMUM_TEMPLATES:
        raise ValueError(
            f"{path}: {len(entries)} templates, at least {MINIMUM_TEMPLATES} are needed"
        )
    return TemplateFile(path.stem, slots, tuple(text for text, _ in entries))


def _texts(path: Path, key: str, node: yaml.Node) -> list[tuple[str, int]]:
    """The strings of a YAML list with their line numbers, counted from 1."""
    if not isinstance(node, yaml.SequenceNode):
        raise ValueError(f"{path}:{node.start_mark.line + 1}: {key!r} must be a list of strings")
    texts = []
    for entry in node.value:
        line = entry.start_mark.line + 1
        if not isinstance(entry, yaml.ScalarNode) or entry.tag != "tag:yaml.org,2002:str":
            raise ValueError(f"{path}:{line}: an entry of {key!r} is not a string; quote it")
        if not entry.value.strip():
            raise ValueError(f"{path}:{line}: an entry of {key!r} is empty; remove it")
        texts.append((entry.value, line))
    return texts


def _check_slots(text: str, slots: tuple[str, ...], place: str) -> None:
    try:
        fields = [
            (name, spec, conversion)
            for _, name, spec, conversion in Formatter().parse(text)
            if name is not None
        ]
    except ValueError as error:
        raise ValueError(f"{place}: {text!r}: {error}; write a literal brace twice") from error
    names = [name for name, _, _ in fields]
    for name, spec, conversion in fields:
        if name not in slots:
            raise ValueError(f"{place}: unknown slot {name!r} in {text!r}; known are {slots}")
        if spec or conversion:
            raise ValueError(f"{place}: slot {name!r} in {text!r} may not carry a format")
    for slot in slots:
        if names.count(slot) != 1:
            raise ValueError(
                f"{place}: slot {slot!r} must stand once in {text!r}, found {names.count(slot)}"
            )


@cache
def templates(task: str) -> TemplateFile:
    """The shipped templates of `task`; ValueError for a task that has none."""
    path = TEMPLATE_DIRECTORY / f"{task}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in TEMPLATE_DIRECTORY.glob("*.yaml"))
        raise ValueError(f"no templates for the task {task!r}; there are some for {known}")
    return load_templates(path)


def template_version() -> str:
    """A hash of every shipped template file; a record's instructions depend on nothing else."""
    digest = hashlib.sha256()
    for path in sorted(TEMPLATE_DIRECTORY.glob("*.yaml")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def format_options(choices: list[str]) -> str:
    """Joins choices as "(a) first (b) second"; 26 at most, as the letters run out."""
    if len(choices) > 26:
        raise ValueError(f"{len(choices)} choices; at most 26 can be lettered")
    return " ".join(f"({chr(ord('a') + index)}) {text}" for index, text in enumerate(choices))


def render(example: Example) -> tuple[str, ...]:
    """Every instruction of an example: its own if it brings some, else one per template.

    Raises:
        ValueError: the example lacks a slot that its templates name.
    """
    if example.instructions:
        return example.instructions
    entry = get(example.dataset)
    if entry.role == "held_in":
        texts = templates(example.task).templates
    else:
        texts = (entry.evaluation_prompt,)
    try:
        return tuple(text.format_map(example.slots) for text in texts)
    except KeyError as error:
        raise ValueError(
            f"{example.dataset} {example.id}: no value for the slot {error}; "
            f"the example has {sorted(example.slots)}"
        ) from error
