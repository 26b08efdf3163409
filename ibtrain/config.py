"""A recipe: the typed configuration of a run, read from YAML with `key=value` overrides.

Unknown keys are refused and the nearest known one is named. Paths are relative to the working
directory; `${root}` stands for the recipe's `root`.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from yaml import YAMLError

from ibtrain.files import FileError, check_not_pointer, refuse_unbounded_yaml

RECIPES = Path(__file__).parent / "recipes"


class RecipeError(ValueError):
    """A recipe that cannot be used: says which key, what was found and what to do."""


class Section(BaseModel):
    """What all sections share: no unknown keys, no changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class TrainParts(Section):
    """What is trained. The vision tower's final LayerNorm counts with the Q-Former."""

    vision: Literal["frozen", "full"] = "frozen"
    qformer: Literal["frozen", "full"] = "full"
    projection: Literal["frozen", "full"] = "full"
    language: Literal["frozen", "lora", "full"] = "frozen"
    """`lora`: its own weights are frozen, adapters beside them are trained (`model.lora`)."""

    @model_validator(mode="after")
    def _something_is_trained(self) -> "TrainParts":
        if set(self.model_dump().values()) == {"frozen"}:
            raise ValueError(
                "every part is frozen: set at least one of them to full (or language to lora)"
            )
        return self


class LoraSection(Section):
    """Low-rank adapters of the language model: W x + alpha / rank * B A dropout(x)."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0, allow_inf_nan=False)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    targets: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Names of the linear layers that get one, such as q_proj; default: the query and value
    projections of every attention (q_proj and v_proj of a Llama, q and v of a T5)."""

    @model_validator(mode="after")
    def _targets_named_once(self) -> "LoraSection":
        targets = self.targets or ()
        twice = sorted({name for name in targets if targets.count(name) > 1})
        if twice:
            raise ValueError(f"targets names {twice[0]!r} twice")
        return self


class RandomBase(Section):
    """A base that does not exist yet: random weights of a given architecture."""

    processor: Path
    """Directory with both tokenizers and the image processor (InstructBlipProcessor's layout)."""
    initializer_range: float = Field(default=0.02, gt=0)
    vision: dict[str, Any]
    qformer: dict[str, Any]
    language: dict[str, Any]
    num_query_tokens: int = Field(default=32, ge=1)


class Parts(Section):
    """A base put together from the files that its parts were released in.

    Where several hold a part, `instructblip` wins over `stage2`, and that over `stage1`, `vision`
    and `bert`: what was trained later wins.
    """

    bert: Path
    """bert-base-uncased: the Q-Former's tokenizer, and its weights where no file below has them."""
    language: Path | None = None
    """The language model: a Llama's or T5's directory; default: the one in `stage2`."""
    vision: Path | None = None
    """EVA-ViT-g as released (eva_vit_g.pth); default: the tower in one of the files below."""
    stage1: Path | None = None
    """BLIP-2 stage 1 from LAVIS: the one file that has the Q-Former's text feed-forward trained."""
    stage2: Path | None = None
    """BLIP-2 stage 2: a file from LAVIS, or a directory in transformers' BLIP-2 format."""
    instructblip: Path | None = None
    """A released InstructBLIP from LAVIS (instruct_blip_*_trimmed.pth)."""
    random: tuple[Literal["qformer", "projection"], ...] = ()
    """Parts that may begin at random where no file has them; anything else missing is refused."""
    vision_config: dict[str, Any] = {}
    """What differs from EVA-ViT-g (transformers' names)."""
    qformer_config: dict[str, Any] = {}
    """What differs from the released Q-Former."""
    num_query_tokens: int = Field(default=32, ge=1)

    @model_validator(mode="after")
    def _a_language_model(self) -> "Parts":
        if self.language is None and self.stage2 is None:
            raise ValueError(
                "no language model is given: name its directory in language (or a directory in "
                "transformers' BLIP-2 format in stage2)"
            )
        return self


class ModelSection(Section):
    """The model that training starts from; exactly one of `base`, `parts` and `random_base`."""

    base: Path | None = None
    """A directory in transformers' InstructBLIP or BLIP-2 format, or the name of such a model on
    the hub (owner/name), which is looked up in the local cache."""
    parts: Parts | None = None
    random_base: RandomBase | None = None
    allow_download: bool = False
    """Whether a hub name that is not in the local cache may be downloaded."""
    language_release: Literal["vicuna-v1.1", "other"] | None = None
    """What the language model must be; `other` for a Llama that is no Vicuna. Default: vicuna-v1.1
    for a Llama among `parts`, which the released weights were trained on, else unchecked."""
    instruction_aware: bool = True
    train_parts: TrainParts = TrainParts()
    lora: LoraSection | None = None
    """Filled with its defaults where `train_parts.language` is lora."""
    precision: Literal["bf16", "fp32"] = "bf16"
    gradient_checkpointing: bool = False
    """Keep only each layer's input of the language model (and of a trained vision tower) and
    compute the rest again in the backward: less memory, about a third more time."""

    @model_validator(mode="before")
    @classmethod
    def _default_lora(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("lora") is not None:
            return values
        parts = values.get("train_parts")
        language = parts.get("language") if isinstance(parts, dict) else None
        if isinstance(parts, TrainParts):
            language = parts.language
        return values | {"lora": LoraSection()} if language == "lora" else values

    @model_validator(mode="after")
    def _lora_where_it_is_trained(self) -> "ModelSection":
        if self.lora is not None and self.train_parts.language != "lora":
            raise ValueError(
                f"model.lora is given, but train_parts.language is {self.train_parts.language}, "
                "so no adapter would be trained: set train_parts.language=lora, or take model.lora "
                "out (model.lora=null)"
            )
        return self

    @model_validator(mode="after")
    def _random_parts_are_trained(self) -> "ModelSection":
        for part in self.parts.random if self.parts is not None else ():
            if getattr(self.train_parts, part) == "frozen":
                raise ValueError(
                    f"parts.random names {part}, which train_parts freezes, so it would stay "
                    f"random: set train_parts.{part}=full, or take it out of parts.random"
                )
        return self

    @model_validator(mode="after")
    def _one_base(self) -> "ModelSection":
        given = [self.base, self.parts, self.random_base]
        if sum(one is not None for one in given) != 1:
            raise ValueError("give exactly one of base, parts and random_base")
        return self


class MixtureEntry(Section):
    """One prepared dataset. `factor` multiplies its balanced weight."""

    dataset: str = Field(min_length=1)
    path: str = Field(min_length=1)
    """The directory of its shards, or an address in an object store (s3://bucket/folder)."""
    factor: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    forms: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}
    """Factors of single forms of its records ({multiple_choice: 0.5}); 0 leaves a form out."""


class DataSection(Section):
    """What is read and how."""

    mixture: tuple[MixtureEntry, ...] = Field(min_length=1)
    balance: Literal["sqrt", "proportional", "uniform"] = "sqrt"
    draw: Literal["sample", "batch"] = "sample"
    """Draw the dataset of every sample, or that of every global batch."""
    epoch_samples: int | None = Field(default=None, ge=1)
    """Samples drawn per epoch; default: as many as the datasets hold together."""
    prompts: Literal["instructions", "plain", "identifier"] = "instructions"
    """An instruction; the bare input; or the bare input behind `[task: dataset]`."""
    image_size: int = Field(default=224, ge=8)
    augmentation: Literal["resize", "crop", "crop_flip"] = "crop_flip"
    """The most that is done to an image; one that text is read from is only resized, and one whose
    text names a side is not mirrored."""
    max_instruction_tokens: int = Field(default=128, ge=8)
    max_answer_tokens: int = Field(default=256, ge=1)
    workers: int = Field(default=4, ge=0)
    worker_timeout: float = Field(default=1800.0, gt=0)
    """Seconds without a batch after which a job with workers fails instead of waiting on."""
    cache: Path | None = None
    """Where shards are unpacked to; default: cache/ in the run directory."""
    bad_shard_budget: float = Field(default=0.01, ge=0, le=1)
    """The share of a dataset's samples that may be replaced because they cannot be read."""

    @model_validator(mode="after")
    def _named_once(self) -> "DataSection":
        names = [entry.dataset for entry in self.mixture]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"mixture names {twice[0]!r} twice")
        return self


class TrainingSection(Section):
    """Steps, batch and optimizer (AdamW; linear warm-up, cosine decay)."""

    steps: int = Field(ge=1)
    global_batch: int = Field(ge=1)
    micro_batch: int = Field(ge=1)
    learning_rate: float = Field(default=1e-5, gt=0)
    warmup_steps: int = Field(default=1000, ge=0)
    warmup_start: float = Field(default=1e-8, ge=0)
    min_learning_rate: float = Field(default=0.0, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    gradient_clip: float = Field(default=0.0, ge=0)
    """Maximal global gradient norm; 0 turns clipping off (as the paper)."""
    log_every: int = Field(default=10, ge=1)


class CheckpointSection(Section):
    """When checkpoints are written and how many are kept."""

    every: int = Field(default=1000, ge=1)
    keep: int = Field(default=3, ge=1)
    resume_from: str | None = None
    """A step directory's name (step-00003000) to go on from instead of the latest."""
    accept_changed_data: bool | tuple[str, ...] = False
    """Go on although the mixture, its order or its shards changed since the checkpoint: true, or
    the names of what may have changed ([datasets.vqav2.share])."""


class Recipe(Section):
    """Everything that determines a run."""

    name: str
    root: Path = Path()
    output: Path
    seed: int = Field(default=0, ge=0)
    sharding: str = "zero3"
    """A file of ds_configs/ by its name, or the path of a DeepSpeed JSON; `auto`: the planner
    chooses one for the GPUs at every start, and RUN/plan.json says which and why."""
    kernels: Literal["auto", "off"] = "auto"
    """Fused kernels where the device has them; `off`: torch's and transformers' own everywhere."""
    model: ModelSection
    data: DataSection
    training: TrainingSection
    checkpoint: CheckpointSection = CheckpointSection()

    @field_validator("kernels", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        # An unquoted `off` is false in YAML.
        return "off" if value is False else value


def shipped_recipes() -> dict[str, Path]:
    """Names and files of the recipes that come with the package."""
    return {file.stem: file for file in sorted(RECIPES.glob("*.yaml"))}


def recipe_path(name_or_path: str) -> Path:
    """The file of a shipped recipe's name or of a path.

    Raises:
        RecipeError: when there is neither.
    """
    shipped = shipped_recipes()
    if name_or_path in shipped:
        return shipped[name_or_path]
    path = Path(name_or_path)
    if path.is_file():
        return path
    near = difflib.get_close_matches(name_or_path, shipped, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise RecipeError(
        f"no recipe {name_or_path!r}: it is neither a file nor a shipped recipe; {hint}"
        f"shipped are {', '.join(shipped)}"
    )


def micro_batches_per_step(recipe: Recipe, world: int) -> int:
    """Micro-batches that each rank runs per optimizer step.

    Raises:
        RecipeError: when the global batch does not divide among the ranks.
    """
    training = recipe.training
    if training.global_batch % world:
        raise RecipeError(
            f"training.global_batch is {training.global_batch}, which does not divide among "
            f"{world} ranks; choose a multiple of {world}, or {_nearest_counts(training, world)}"
        )
    return -(-(training.global_batch // world) // training.micro_batch)


def _nearest_counts(training: TrainingSection, world: int) -> str:
    """The numbers of ranks next to `world` that divide the global batch."""
    batch = training.global_batch
    fewer = max(count for count in range(1, world) if batch % count == 0)
    more = next((count for count in range(world + 1, batch + 1) if batch % count == 0), None)
    return f"{fewer} ranks" if more is None else f"{fewer} or {more} ranks"


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies `key=value` overrides (dotted keys, YAML values).

    Raises:
        RecipeError: with every fault found, one line each.
    """
    path = recipe_path(name_or_path)
    for override in overrides:
        if override.find("=") < 1:
            raise RecipeError(
                f"override {override!r} is not of the form key=value "
                "(for example training.steps=100)"
            )
    try:
        check_not_pointer(path)
        refuse_unbounded_yaml(path)
        loaded = OmegaConf.load(path)
        if not isinstance(loaded, DictConfig):
            raise RecipeError(f"{path} is not a mapping of keys to values")
        for override in overrides:
            key, _, text = override.partition("=")
            parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
            OmegaConf.update(loaded, key, parsed["value"])
        values = OmegaConf.to_container(loaded, resolve=True)
    except (OmegaConfBaseException, YAMLError, OSError, ValueError, RecursionError) as error:
        if isinstance(error, RecipeError):
            raise
        if isinstance(error, FileError):
            raise RecipeError(str(error)) from error
        raise RecipeError(f"{path} cannot be read as a recipe: {error}") from error
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        faults = [_describe(fault) for fault in error.errors()]
        raise RecipeError("\n".join(f"{path}: {fault}" for fault in faults)) from error


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML; loading it again gives an equal recipe."""
    text: str = OmegaConf.to_yaml(OmegaConf.create(recipe.model_dump(mode="json")))
    return text


def _describe(fault: Any) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = _known_keys(fault["loc"][:-1])
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"unknown key {key!r}; {hint}"
    if fault["type"] == "missing":
        return f"the key {key!r} is missing"
    message = fault["msg"].removeprefix("Value error, ")
    found = "" if isinstance(fault["input"], dict | BaseModel) else f", found {fault['input']!r}"
    return f"{key}: {message}{found}"


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """Field names of the section at `location`."""
    section: type[BaseModel] = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        nested = _section_in(section.model_fields[part].annotation)
        assert nested is not None, location
        section = nested
    return list(section.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    # tuple[X, ...] and the like are classes to isinstance, so their arguments are looked at first.
    for argument in get_args(annotation):
        found = _section_in(argument)
        if found is not None:
            return found
    if get_origin(annotation) is None and isinstance(annotation, type):
        return annotation if issubclass(annotation, BaseModel) else None
    return None
