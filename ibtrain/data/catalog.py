"""The datasets: task category, role, metric, files, published size, prompts and where to get them.

Each is one YAML file in datasets/. Sources: InstructBLIP (arXiv 2305.06500), section 2.1, appendix
C (sizes) and appendix E (prompts); other sizes are their owners' published counts.

Raw files. `--raw DIR` names the folder of one dataset. An annotation file is looked for in DIR and
in DIR/annotations; images in each of the dataset's `image_roots`. COCO's images, which several
datasets share, are looked for in DIR/images, DIR/../coco/images and DIR, in this order, so one copy
of COCO beside the annotations of VQAv2, A-OKVQA and LLaVA serves them all.

A dataset of your own is one more such file, named by its path wherever a dataset's name is
expected: `ibtrain data prepare mine.yaml --raw DIR --out DIR`. examples/own_dataset has one with
every key explained, its templates and its annotations. The keys:

    name            lower-case letters, digits, _ and -
    task            a category of TASKS or one of your own; where it ends in "_with_reading", text
                    is read off the images, which are then neither cropped nor mirrored
    reader          what reads the annotations: `question_answer` and `caption_pairs` read lists in
                    JSON, JSON Lines or CSV, `conversation` reads LLaVA's form; a shipped dataset's
                    reader reads that dataset's layout
    reader_options  which keys or columns the reader takes, where they are called otherwise:
                    {image: file, question: query, answer: label, id: key}, for conversations
                    also video and conversations; {generate: question} asks for the question to an
                    answer
    splits          for each split `files` (alternatives, each a list of files that belong
                    together), `size` (published, optional), `labelled` (false: no answers) and
                    `sha256` ({file: hash}, optional: evaluation warns where another was read);
                    the first split is prepared where none is named
    prompts         for each form of example the prompt that evaluation uses
    templates       for each form of example a file of at least 10 instructions to train with: a
                    shipped one by name, or a .yaml file beside this one
    image_roots     folders of the images, as seen from the raw directory ("images" and the raw
                    directory itself, where none is named)
    role            held_in (to train on, where nothing is said), held_out_seen or held_out_unseen
    evaluation      how it is answered and scored, see answering.py: {answering: generate, metric:
                    VQA accuracy}; without it the metric, where it is one of those, of generated
                    answers
    metric, source  for people to read
"""

import re
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
)

from ibtrain.data.answering import check_ways

Role = Literal["held_in", "held_out_seen", "held_out_unseen"]
TASKS = (
    "captioning",
    "captioning_with_reading",
    "image_question_answering",
    "knowledge_question_answering",
    "question_answering_with_reading",
    "question_generation",
    "llava_instruct",
    "visual_reasoning",
    "video_question_answering",
    "visual_dialog",
    "image_classification",
)
DATASETS = Path(__file__).parent / "datasets"
_MAXIMUM_BYTES = 1 << 16
_MAXIMUM_DEPTH = 16
# What YAML's constructors raise for a value that does not fit its tag (a 13th month, !!bool 5).
_MISFITS = (ValueError, TypeError, KeyError, IndexError, AttributeError)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Split(_Part):
    """One split of a dataset.

    `files` are alternatives, each a set of files that belong together; the first that is wholly
    there is read. A name that ends in "/" is a folder. `size` is the published number of samples;
    `labelled` is false where the answers are not public. `sha256` has the hashes of files, by name,
    whose content is known: evaluation warns where others were read.
    """

    files: tuple[tuple[str, ...], ...] = Field(min_length=1)
    size: int | None = Field(default=None, ge=1)
    labelled: bool = True
    sha256: dict[str, str] = Field(default_factory=dict)

    @field_validator("sha256")
    @classmethod
    def _hashes_are_hashes(cls, hashes: dict[str, str]) -> dict[str, str]:
        for name, digest in hashes.items():
            if not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise ValueError(f"{name}: {digest[:70]!r} is no SHA-256 in hexadecimal digits")
        return hashes


class DatasetEntry(_Part):
    """What ibtrain knows of one dataset.

    `reader` names a module of readers/, whose examples have forms (a caption, a question with
    options, ...). `prompts` gives the prompt of evaluation for each form, the main one first.
    `templates` gives the forms' training instructions: shipped ones by name, or a YAML file beside
    this one, whose name or key `form` is the form. With neither, examples bring instructions.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_\-]{0,63}$")
    task: str = Field(pattern=r"^[a-z0-9][a-z0-9_]{0,63}$")
    """One of TASKS; a dataset of your own may name another. Where it ends in "_with_reading", text
    is read off the images, which are then neither cropped nor mirrored."""
    role: Role = "held_in"
    metric: str = "none (training only)"
    evaluation: dict[str, Any] = Field(default_factory=dict)
    reader: str
    reader_options: dict[str, str] = Field(default_factory=dict)
    source: str = ""
    prompts: dict[str, str] = Field(default_factory=dict)
    templates: tuple[str, ...] = ()
    image_roots: tuple[str, ...] = ("images", ".")
    splits: dict[str, Split] = Field(min_length=1)
    """The first one is the default."""

    _file: str = PrivateAttr("")

    @field_validator("prompts")
    @classmethod
    def _slots_are_plain(cls, prompts: dict[str, str]) -> dict[str, str]:
        for prompt in prompts.values():
            prompt_slots(prompt)
        return prompts

    @field_validator("evaluation")
    @classmethod
    def _ways_are_known(cls, evaluation: dict[str, Any]) -> dict[str, Any]:
        if evaluation:
            check_ways(evaluation, "")
        return evaluation

    @property
    def origin(self) -> str:
        """Where it is described, for messages: its file, or its name."""
        return self._file or self.name

    @property
    def files(self) -> tuple[str, ...]:
        """Every file name among all alternatives of all splits."""
        names = [name for split in self.splits.values() for files in split.files for name in files]
        return tuple(dict.fromkeys(names))

    @property
    def evaluation_prompt(self) -> str:
        """The main prompt; the example's own instruction where there is none."""
        return next(iter(self.prompts.values()), "{instruction}")

    @property
    def default_split(self) -> str:
        """The split that is prepared where none is named."""
        return next(iter(self.splits))


def prompt_slots(prompt: str) -> tuple[str, ...]:
    """The names of a prompt's slots in their order; ValueError where one is no plain name."""
    slots = []
    try:
        for _, slot, spec, conversion in Formatter().parse(prompt):
            if slot is None:
                continue
            if not slot.isidentifier() or spec or conversion:
                raise ValueError(f"{{{slot}}} is no slot, which is a plain name in braces")
            slots.append(slot)
    except ValueError as error:
        raise ValueError(f"{prompt[:200]!r}: {error}; write a literal brace twice") from error
    return tuple(slots)


def load_entry(path: Path) -> DatasetEntry:
    """Reads and checks a dataset's YAML file.

    Raises:
        ValueError: naming the file, the key and what is wrong.
    """
    root = yaml_nodes(path, "the dataset file")
    try:
        content = None if root is None else yaml.SafeLoader("").construct_document(root)
    except (yaml.YAMLError, RecursionError, *_MISFITS) as error:
        raise ValueError(f"{path}: not readable as YAML: {str(error)[:300]}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys and values at the top")
    entry = check_entry({str(key): value for key, value in content.items()}, str(path))
    own = tuple(
        str(path.parent / name) if name.endswith((".yaml", ".yml")) else name
        for name in entry.templates
    )
    loaded = entry.model_copy(update={"templates": own})
    loaded._file = str(path)
    return loaded


def yaml_nodes(path: Path, what: str) -> yaml.Node | None:
    """The nodes of a YAML file, None of an empty one; aliases, by which a short file can grow
    without end, are refused.

    Args:
        path: the file.
        what: what it is, for messages.

    Raises:
        ValueError: naming the file, which is missing, too large or no YAML.
    """
    try:
        if not path.is_file():
            raise ValueError(f"{what} {path} cannot be read: it is not there, or no plain file")
        with path.open("rb") as file:
            data = file.read(_MAXIMUM_BYTES + 1)
        if len(data) > _MAXIMUM_BYTES:
            raise ValueError(f"{path}: larger than {_MAXIMUM_BYTES} bytes")
        text = data.decode("utf-8-sig")
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"{path}: has an alias (*name); write the value out")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAXIMUM_DEPTH:  # the parser's time grows with its square
                raise ValueError(f"{path}: nested more than {_MAXIMUM_DEPTH} deep")
        return yaml.compose(text, yaml.SafeLoader)
    except OSError as error:
        raise ValueError(f"{what} {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as YAML: {str(error)[:300]}") from error


def check_entry(content: dict[str, Any], origin: str) -> DatasetEntry:
    """An entry of plain values; ValueError naming `origin` and every key that is wrong."""
    try:
        return DatasetEntry.model_validate(content)
    except ValidationError as error:
        known = sorted(DatasetEntry.model_fields)
        lines = []
        for fault in error.errors():
            key = ".".join(str(part) for part in fault["loc"])
            text = fault["msg"].removeprefix("Value error, ")
            if fault["type"] == "extra_forbidden":
                near = get_close_matches(key, known, n=1)
                text = f"unknown key{f'; did you mean {near[0]!r}?' if near else ''}"
            lines.append(f"{key}: {text}" if key else text)
        raise ValueError(f"{origin}: " + "; ".join(lines)) from error


@cache
def _shipped() -> dict[str, DatasetEntry]:
    """All shipped entries by name: held-in first, then by task in the paper's order."""
    entries = [load_entry(path) for path in DATASETS.glob("*.yaml")]
    roles: tuple[str, ...] = get_args(Role)

    def table_position(entry: DatasetEntry) -> tuple[int, int, str]:
        task = TASKS.index(entry.task) if entry.task in TASKS else len(TASKS)
        return roles.index(entry.role), task, entry.name

    return {entry.name: entry for entry in sorted(entries, key=table_position)}


def entries() -> tuple[DatasetEntry, ...]:
    """The 26 datasets of the paper, held-in first."""
    return tuple(entry for entry in _shipped().values() if entry.task in TASKS)


def get(name: str) -> DatasetEntry:
    """The entry called `name`, or of the YAML file at that path.

    Raises:
        ValueError: naming the nearest name where there is none, or what is wrong with the file.
    """
    if name.endswith((".yaml", ".yml")):
        return load_entry(Path(name))
    shipped = _shipped()
    if name in shipped:
        return shipped[name]
    nearest = get_close_matches(name, shipped, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(shipped)}"
    raise ValueError(
        f"no dataset is called {name!r}; {hint} (a dataset of your own is named by its .yaml file)"
    )
