"""The DeepSpeed configurations: those of ds_configs/ by name, any other by path."""

import json
from pathlib import Path
from typing import Any

from ibtrain.config import RecipeError

# In an installed package they lie inside it, in a checkout beside it.
DS_CONFIGS = next(
    directory
    for directory in (
        Path(__file__).parent / "ds_configs",
        Path(__file__).parents[1] / "ds_configs",
    )
    if directory.is_dir()
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


def read_sharding(sharding: str) -> dict[str, Any]:
    """The content of the DeepSpeed JSON that a recipe's `sharding` names.

    Raises:
        RecipeError: when it is not there, or it or its `zero_optimization` is not a JSON object.
    """
    path = sharding_file(sharding)
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} cannot be read as JSON ({error}); correct it") from error
    if not isinstance(config, dict):
        raise RecipeError(f"{path} is not a JSON object, as a DeepSpeed configuration is")
    zero = config.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise RecipeError(f"{path} sets zero_optimization to {zero!r}; it is a JSON object")
    return config
