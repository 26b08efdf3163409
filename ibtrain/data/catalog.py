"""The datasets: task category, role, metric, files, published size, prompts and where to get them.

Each is one YAML file in datasets/; a dataset of your own is one more such file, named by its path
wherever a dataset's name is expected. Sources: InstructBLIP (arXiv 2305.06500), section 2.1,
appendix C (sizes) and appendix E (prompts); other sizes are their owners' published counts.

Raw files. `--raw DIR` names the folder of one dataset. An annotation file is looked for in DIR and
in DIR/annotations; images in each of the dataset's `image_roots`. COCO's images, which several
datasets share, are looked for in DIR/images, DIR/../coco/images and DIR, in this order, so one copy
of COCO beside the annotations of VQAv2, A-OKVQA and LLaVA serves them all.
"""

from difflib import get_close_matches
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

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
_MAXIMUM_BYTES = 1 << 20


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Split(_Part):
    """One split of a dataset.

    `files` are alternatives, each a set of files that belong together; the first that is wholly
    there is read. A name that ends in "/" is a folder. `size` is the published number of samples;
    `labelled` is false where the answers are not public.
    """

    files: tuple[tuple[str, ...], ...] = Field(min_length=1)
    size: int | None = Field(default=None, ge=1)
    labelled: bool = True


class DatasetEntry(_Part):
    """What ibtrain knows of one dataset.

    `reader` names a module of readers/, whose examples have forms (a caption, a question with
    options, ...). `prompts` gives the prompt of evaluation for each form, the main one first.
    `templates` gives the forms' training instructions: shipped ones by name, or the path of a YAML
    file beside this one, whose name is the form. With neither, examples bring instructions.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_\-]{0,63}$")
    task: str = Field(pattern=r"^[a-z0-9][a-z0-9_]{0,63}$")
    """One of TASKS; a dataset of your own may name another. Where it ends in "_with_reading", text
    is read off the images, which are then neither cropped nor mirrored."""
    role: Role
    metric: str
    reader: str
    reader_options: dict[str, str] = Field(default_factory=dict)
    source: str = ""
    prompts: dict[str, str] = Field(default_factory=dict)
    templates: tuple[str, ...] = ()
    image_roots: tuple[str, ...] = ("images", ".")
    splits: dict[str, Split] = Field(min_length=1)
    """The first one is the default."""

    @model_validator(mode="after")
    def _held_in_has_templates(self) -> "DatasetEntry":
        forms = {Path(name).stem for name in self.templates}
        missing = set(self.prompts) - forms
        if self.role == "held_in" and missing:
            raise ValueError(
                f"templates lack the form {sorted(missing)[0]!r}, which prompts name: a dataset "
                "that is trained on needs instructions for each form"
            )
        for form, prompt in self.prompts.items():
            for _, slot, spec, conversion in Formatter().parse(prompt):
                if slot is not None and (not slot.isidentifier() or spec or conversion):
                    raise ValueError(
                        f"the prompt of {form!r} has {{{slot}}}: a slot is a plain name"
                    )
        return self

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


def load_entry(path: Path) -> DatasetEntry:
    """Reads and checks a dataset's YAML file.

    Raises:
        ValueError: naming the file, the key and what is wrong.
    """
    try:
        if path.stat().st_size > _MAXIMUM_BYTES:
            raise ValueError(f"{path}: larger than {_MAXIMUM_BYTES} bytes")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"the dataset file {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys and values at the top")
    entry = check_entry(content, str(path))
    own = tuple(
        str(path.parent / name) if name.endswith((".yaml", ".yml")) else name
        for name in entry.templates
    )
    return entry.model_copy(update={"templates": own})


def check_entry(content: dict[str, Any], place: str) -> DatasetEntry:
    """An entry of plain values; ValueError naming `place` and every key that is wrong."""
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
        raise ValueError(f"{place}: " + "; ".join(lines)) from error


@cache
def _shipped() -> dict[str, DatasetEntry]:
    """All shipped entries by name: held-in first, then by task in the paper's order."""
    entries = [load_entry(path) for path in DATASETS.glob("*.yaml")]
    roles: tuple[str, ...] = get_args(Role)

    def place(entry: DatasetEntry) -> tuple[int, int, str]:
        task = TASKS.index(entry.task) if entry.task in TASKS else len(TASKS)
        return roles.index(entry.role), task, entry.name

    return {entry.name: entry for entry in sorted(entries, key=place)}


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
