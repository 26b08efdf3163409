"""Examples become instructions: templates with named slots, one YAML file per form of example.

Every variant is rendered into the record, and reading chooses one, so a shard can be read without
this module. The first instruction of a record is the prompt that evaluation uses. A held-out
dataset gets its evaluation prompt and nothing else.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Formatter

import yaml

from ibtrain.data.catalog import DatasetEntry, prompt_slots, yaml_nodes
from ibtrain.data.records import Example

TEMPLATE_DIRECTORY = Path(__file__).parent / "templates"
MINIMUM_TEMPLATES = 10
MAXIMUM_OCR_TOKENS = 30
_KEYS = {"slots", "templates"}


@dataclass(frozen=True)
class TemplateFile:
    """The templates of one form, each of which names every slot in `slots` exactly once."""

    form: str
    slots: tuple[str, ...]
    templates: tuple[str, ...]


def load_templates(path: Path) -> TemplateFile:
    """Reads and checks a template file: `slots`, `templates` and, where the file's name without
    the suffix is not the form, `form`.

    Raises:
        ValueError: naming the file, the line and what to change.
    """
    root = yaml_nodes(path, "the templates")
    sections = _sections(path, root)
    form = path.stem
    if "form" in sections:
        ((form, line),) = _texts(path, "form", sections["form"])
        if not form.isidentifier():
            raise ValueError(f"{path}:{line}: the form {form[:60]!r} is no plain name")
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
    return TemplateFile(form, slots, tuple(text for text, _ in entries))


def _sections(path: Path, root: yaml.Node | None) -> dict[str, yaml.Node]:
    """What the file holds by key."""
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{path}: expected the keys {sorted(_KEYS)} at the top of the file")
    sections: dict[str, yaml.Node] = {}
    for key, value in root.value:
        name, line = str(key.value)[:60], key.start_mark.line + 1
        if name in sections:
            raise ValueError(f"{path}:{line}: the key {name!r} stands twice; remove one")
        sections[name] = value
    if set(sections) - {"form"} != _KEYS:
        raise ValueError(f"{path}: expected the keys {sorted(_KEYS)}, found {sorted(sections)}")
    return sections


def _texts(path: Path, key: str, node: yaml.Node) -> list[tuple[str, int]]:
    """The strings of a YAML list, or the one string of `form`, with their lines from 1."""
    if key == "form":
        node = yaml.SequenceNode("", [node], node.start_mark)
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


def _check_slots(text: str, slots: tuple[str, ...], origin: str) -> None:
    try:
        fields = [
            (name, spec, conversion)
            for _, name, spec, conversion in Formatter().parse(text)
            if name is not None
        ]
    except ValueError as error:
        raise ValueError(f"{origin}: {text!r}: {error}; write a literal brace twice") from error
    names = [name for name, _, _ in fields]
    for name, spec, conversion in fields:
        if name not in slots:
            raise ValueError(f"{origin}: unknown slot {name!r} in {text!r}; known are {slots}")
        if spec or conversion:
            raise ValueError(f"{origin}: slot {name!r} in {text!r} may not carry a format")
    for slot in slots:
        if names.count(slot) != 1:
            raise ValueError(
                f"{origin}: slot {slot!r} must stand once in {text!r}, found {names.count(slot)}"
            )


@cache
def templates(name: str) -> TemplateFile:
    """The shipped templates of a form, or those of the YAML file at a path.

    Raises:
        ValueError: a form that has none, or a file that is not as it must be.
    """
    if name.endswith((".yaml", ".yml")):
        return load_templates(Path(name))
    path = TEMPLATE_DIRECTORY / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in TEMPLATE_DIRECTORY.glob("*.yaml"))
        raise ValueError(f"no templates for the form {name!r}; there are some for {known}")
    return load_templates(path)


def templates_by_form(entry: DatasetEntry) -> dict[str, TemplateFile]:
    """The templates of a dataset by their form, held against its prompts.

    Raises:
        ValueError: naming the dataset's file and key: two files of a form, a form without a prompt,
            a prompt with a slot that its templates lack, or a dataset to train on whose prompt has
            no templates.
    """
    found: dict[str, TemplateFile] = {}
    for name in entry.templates:
        file = templates(name)
        if file.form in found:
            raise ValueError(f"{entry.origin}: templates: two files are for the form {file.form!r}")
        if file.form not in entry.prompts:
            raise ValueError(
                f"{entry.origin}: prompts: no prompt for the form {file.form!r} of the templates "
                f"{name}; add the one that evaluation uses"
            )
        found[file.form] = file
    for form, prompt in entry.prompts.items():
        if form in found:
            for slot in prompt_slots(prompt):
                if slot not in found[form].slots:
                    raise ValueError(
                        f"{entry.origin}: prompts.{form}: unknown slot {slot!r}; its templates "
                        f"have {', '.join(found[form].slots) or 'none'}"
                    )
        elif entry.role == "held_in":
            raise ValueError(
                f"{entry.origin}: templates: none for the form {form!r}, which prompts name; a "
                "dataset that is trained on needs instructions for each form"
            )
    return found


def template_version(entry: DatasetEntry | None = None) -> str:
    """A hash of all that a record's instructions depend on beside its annotation: the templates
    and prompts of `entry`, or of every shipped template file.

    Raises:
        ValueError: the templates of `entry` are not as they must be.
    """
    digest = hashlib.sha256()
    if entry is None:
        for path in sorted(TEMPLATE_DIRECTORY.glob("*.yaml")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    else:
        for file in templates_by_form(entry).values():
            digest.update(repr(file).encode() + b"\0")
        digest.update(repr(sorted(entry.prompts.items())).encode())
    return digest.hexdigest()[:16]


def format_options(choices: Sequence[str]) -> str:
    """Joins choices as "(a) first (b) second"; 26 at most, as the letters run out."""
    if len(choices) > 26:
        raise ValueError(f"{len(choices)} choices; at most 26 can be lettered")
    return " ".join(f"({chr(ord('a') + index)}) {text}" for index, text in enumerate(choices))


def format_ocr_tokens(tokens: Sequence[str]) -> str:
    """The first 30 tokens read off an image, joined as the evaluation prompt shows them (LAVIS)."""
    return ", ".join(tokens[:MAXIMUM_OCR_TOKENS])


def render(example: Example, entry: DatasetEntry) -> tuple[str, ...]:
    """Every instruction of an example: its own if it brings some, else the prompt of evaluation
    and, for a dataset that is trained on, one per template.

    Raises:
        ValueError: the dataset has no prompt for the example's form, or the example lacks a slot.
    """
    if example.instructions:
        return example.instructions
    texts = [_prompt(example, entry)]
    if entry.role == "held_in":
        for name in entry.templates:
            file = templates(name)
            if file.form == example.form:
                texts += file.templates
    try:
        return tuple(dict.fromkeys(text.format_map(example.slots) for text in texts))
    except KeyError as error:
        raise ValueError(
            f"{example.dataset} {example.id}: no value for the slot {error}; "
            f"the example has {sorted(example.slots)}"
        ) from error


def plain_input(example: Example, entry: DatasetEntry) -> str:
    """What an example asks without any instruction: its slots in the order of the prompt.

    Empty for captioning; where the example brings instructions, the first of them.
    """
    if example.instructions:
        return example.instructions[0]
    slots = prompt_slots(_prompt(example, entry))
    return " ".join(example.slots[slot] for slot in slots if example.slots.get(slot))


def _prompt(example: Example, entry: DatasetEntry) -> str:
    prompt = entry.prompts.get(example.form)
    if prompt is None:
        raise ValueError(
            f"{entry.origin}: prompts: none for the form {example.form!r}, which its reader "
            f"{entry.reader!r} gives; add the one that evaluation uses"
        )
    return prompt
