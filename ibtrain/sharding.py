"""The DeepSpeed configurations: those of ds_configs/ by name, any other by path.

Those of ds_configs/ can be given to DeepSpeed as they are, and so hold a micro-batch, which is not
the run's.

A file of one's own may hold what other trainers' files hold: "auto" stands for the recipe's value,
and where the recipe has none for that of the shipped file of the same stage. What the recipe
determines may stand in it as long as it says the same.
"""

import difflib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ibtrain.config import Recipe, RecipeError, micro_batches_per_step
from ibtrain.files import FileError, check_not_pointer

logger = logging.getLogger(__name__)

_LARGEST = 1 << 20  # bytes
AUTO = "auto"
"""The `sharding` of a recipe that the planner chooses one for when it starts."""
_SECONDARY = "zero_hpz_partition_size"
# In an installed package they lie inside it, in a checkout beside it.
DS_CONFIGS = next(
    directory
    for directory in (
        Path(__file__).parent / "ds_configs",
        Path(__file__).parents[1] / "ds_configs",
    )
    if directory.is_dir()
)


DETERMINED = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "bf16",
    "bfloat16",
    "fp16",
    "amp",
    "optimizer",
    "scheduler",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
)
"""Keys that the recipe determines."""
_PASSED_ON: dict[str, type | tuple[type, ...]] = {
    "zero_optimization": dict,
    "communication_data_type": str,
    "seq_parallel_communication_data_type": str,
    "data_types": dict,
    "prescale_gradients": bool,
    "gradient_predivide_factor": (int, float),
    "disable_allgather": bool,
    "steps_per_print": int,
    "wall_clock_breakdown": bool,
    "memory_breakdown": bool,
    "dump_state": bool,
    "comms_logger": dict,
    "flops_profiler": dict,
    "aio": dict,
}
# LLaMA-Factory's files have them; DeepSpeed reads neither.
_WITHOUT_MEANING = ("comms_config", "monitor_config")
_RECIPE_SAYS = {
    "fp8": "model.precision",
    "activation_checkpointing": "model.gradient_checkpointing",
    "sparse_attention": "kernels",
    "compile": "kernels",
}
_KINDS = {dict: "a JSON object", str: "a string", bool: "true or false", int: "a whole number"}
_DTYPES = ("fp32", "fp16", "bf16")
_OF_SCALING = (  # they say nothing where fp16 is off
    "auto_cast",
    "loss_scale",
    "loss_scale_window",
    "initial_scale_power",
    "hysteresis",
    "consecutive_hysteresis",
    "min_loss_scale",
    "opt_level",
)


def sharding_file(sharding: str) -> Path:
    """The DeepSpeed JSON that a recipe's `sharding` names.

    Raises:
        RecipeError: when there is none.
    """
    named = DS_CONFIGS / f"{sharding}.json"
    path = named if named.is_file() else Path(sharding)
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in DS_CONFIGS.glob("*.json")))
        raise RecipeError(
            f"sharding: {sharding!r} is neither a file nor one of ds_configs/ ({shipped})"
        )
    return path


def read_sharding(sharding: str, gpus_per_node: int | None = None) -> dict[str, Any]:
    """The content of the DeepSpeed JSON that a recipe's `sharding` names.

    Args:
        sharding: a name or a path.
        gpus_per_node: among which zero3-hpz spreads its second copy; default: as in the file.

    Raises:
        RecipeError: when it is not there, is no JSON object, has a key that is not known here, or
            its `zero_optimization` is no JSON object of stage 1, 2 or 3.
    """
    path = sharding_file(sharding)
    config = _read(path)
    for key in [*config]:
        # A comment is written so, for want of another way in JSON.
        if key in _WITHOUT_MEANING or key.startswith(("_", "//", "#")):
            logger.info("%s: %r says nothing to DeepSpeed and is passed over", path, key[:80])
            del config[key]
    for key, value in config.items():
        _check_key(path, key, value)
    zero = config.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    if type(stage) is not int or stage not in (1, 2, 3):
        raise RecipeError(
            f"{path} sets zero_optimization.stage to {json.dumps(stage)[:80]}; "
            "write the number 1, 2 or 3"
        )
    shipped = _read(DS_CONFIGS / f"zero{stage}.json")
    if path.parent == DS_CONFIGS:
        config = {key: value for key, value in config.items() if key not in DETERMINED}
        if gpus_per_node is not None and _SECONDARY in zero:
            config["zero_optimization"] = zero | {_SECONDARY: gpus_per_node}
    return _without_auto(config, shipped)


def _check_key(path: Path, key: str, value: Any) -> None:
    if key in DETERMINED:
        return
    if key not in _PASSED_ON:
        raise RecipeError(f"{path} sets {key!r}, {_unknown(key, [*DETERMINED, *_PASSED_ON])}")
    kind = _PASSED_ON[key]
    number = kind in (int, (int, float)) and not isinstance(value, bool)
    whole = isinstance(value, float) and value.is_integer()
    if value == "auto" or (number and kind is int and whole):
        return
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        said = _KINDS[kind] if isinstance(kind, type) else "a number"
        raise RecipeError(f"{path} sets {key} to {json.dumps(value)[:80]}; it is {said}")
    if key == "data_types":
        for name, dtype in value.items():
            if name != "grad_accum_dtype" or dtype not in (*_DTYPES, "auto"):
                raise RecipeError(
                    f"{path} sets data_types.{name} to {json.dumps(dtype)[:80]}; what may stand "
                    f"there is grad_accum_dtype, one of {', '.join(_DTYPES)}"
                )


def determined(config: dict[str, Any], recipe: Recipe, world: int) -> dict[str, Any]:
    """What the recipe determines of a DeepSpeed configuration, held against what a file says of it.

    Args:
        config: see `read_sharding`.
        recipe: the run.
        world: how many ranks there are.

    Raises:
        RecipeError: when the file sets one of these values otherwise.
    """
    for key, value, wanted, source in _claims(config, recipe, world):
        if value != "auto" and not _same(value, wanted):
            raise RecipeError(
                f"{sharding_file(recipe.sharding)} sets {key} to {json.dumps(value)[:80]}, and the "
                f"recipe determines it: {json.dumps(wanted)} ({source}); remove it there"
            )
    training = recipe.training
    return {
        "train_micro_batch_size_per_gpu": training.micro_batch,
        "gradient_accumulation_steps": micro_batches_per_step(recipe, world),
        "gradient_clipping": training.gradient_clip,
        # What is not finite shows in the gradient norm, at which the run ends (loop.py).
        # DeepSpeed's own look at every tensor is half of what a GPU is told to do in a 7B's step.
        "bf16": {"enabled": recipe.model.precision == "bf16", "check_grad_overflow": False},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def _claims(
    config: dict[str, Any], recipe: Recipe, world: int
) -> Iterator[tuple[str, Any, Any, str]]:
    """Each value in a file that the recipe determines: key, value, the recipe's, and from where."""
    training = recipe.training
    wanted: dict[str, tuple[Any, str]] = {
        "train_batch_size": (training.global_batch, "training.global_batch"),
        "train_micro_batch_size_per_gpu": (training.micro_batch, "training.micro_batch"),
        "gradient_accumulation_steps": (
            micro_batches_per_step(recipe, world),
            f"training.global_batch and micro_batch among {world} ranks",
        ),
        "gradient_clipping": (training.gradient_clip, "training.gradient_clip"),
        "zero_allow_untested_optimizer": (True, "the optimizer is torch's AdamW"),
        "zero_force_ds_cpu_optimizer": (False, "the optimizer is torch's AdamW"),
    }
    for key, (value, source) in wanted.items():
        if key in config:
            yield key, config[key], value, source
    bf16 = recipe.model.precision == "bf16"
    for key, enabled in {"bf16": bf16, "bfloat16": bf16, "fp16": False, "amp": False}.items():
        yield from _section(
            config, key, {"enabled": (enabled, "model.precision")}, {*_OF_SCALING}
            | {"check_grad_overflow", "immediate_grad_update"},
        )  # fmt: skip
    yield from _optimizer_claims(config, recipe)


def _optimizer_claims(
    config: dict[str, Any], recipe: Recipe
) -> Iterator[tuple[str, Any, Any, str]]:
    training, ours = recipe.training, "the optimizer is torch's AdamW"
    yield from _section(config, "optimizer", {"type": ("AdamW", ours)}, {"params"})
    if isinstance(config.get("optimizer"), dict):
        values = {
            "lr": (training.learning_rate, "training.learning_rate"),
            "betas": (list(training.betas), "training.betas"),
            "eps": (1e-8, ours),
            "weight_decay": (training.weight_decay, "training.weight_decay"),
            "torch_adam": (True, ours),
            "adam_w_mode": (True, ours),
            "bias_correction": (True, ours),
        }
        yield from _section(config["optimizer"], "params", values, set(), "optimizer.")
    ours = "a linear warm-up and a cosine decay"
    yield from _section(config, "scheduler", {"type": ("WarmupCosineLR", ours)}, {"params"})
    if isinstance(config.get("scheduler"), dict):
        values = {
            "total_num_steps": (training.steps, "training.steps"),
            "warmup_num_steps": (training.warmup_steps, "training.warmup_steps"),
            "warmup_type": ("linear", ours),
        }
        yield from _section(config["scheduler"], "params", values, set(), "scheduler.")


def _section(
    config: dict[str, Any],
    key: str,
    wanted: dict[str, tuple[Any, str]],
    idle: set[str],
    above: str = "",
) -> Iterator[tuple[str, Any, Any, str]]:
    """The claims of one object in a file; those in `idle` say nothing of their own."""
    section = config.get(key, "auto")
    if section == "auto":
        return
    location = f"{above}{key}"
    if not isinstance(section, dict):
        yield location, section, {name: value for name, (value, _) in wanted.items()}, "an object"
        return
    for name, value in section.items():
        if name in wanted:
            yield f"{location}.{name}", value, *wanted[name]
        elif name not in idle and value != "auto":
            yield f"{location}.{name}", value, None, _unknown(name, [*wanted, *idle])


def _same(value: Any, wanted: Any) -> bool:
    """Equal as JSON: true is not 1, while 8.0 is 8."""
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


def _unknown(key: str, known: list[str]) -> str:
    if key in _RECIPE_SAYS:
        return f"which is not used here; remove it, and set {_RECIPE_SAYS[key]} in the recipe"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    return f"which is not known here; {f'did you mean {near[0]!r}?' if near else 'remove it'}"


def _without_auto(section: dict[str, Any], shipped: dict[str, Any]) -> dict[str, Any]:
    """A configuration whose "auto" is the shipped value, or left to DeepSpeed where none is."""
    kept: dict[str, Any] = {}
    for key, value in section.items():
        usual = shipped.get(key)
        if isinstance(value, dict) and key not in DETERMINED:
            kept[key] = _without_auto(value, usual if isinstance(usual, dict) else {})
        elif value != "auto" or key in DETERMINED:
            kept[key] = value
        elif usual is not None:
            kept[key] = usual
    return kept


def _read(path: Path) -> dict[str, Any]:
    """A JSON object of bounded size, each key of which stands once."""
    try:
        check_not_pointer(path)
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise ValueError(f"more than {_LARGEST} bytes")
        config = json.loads(text.decode("utf-8-sig"), object_pairs_hook=_once)
    except FileError as error:
        raise RecipeError(str(error)) from error
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path} cannot be read as JSON ({error}); correct it") from error
    if not isinstance(config, dict):
        raise RecipeError(f"{path} is not a JSON object, as a DeepSpeed configuration is")
    return config


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key {key[:80]!r} stands twice")
        content[key] = value
    return content
