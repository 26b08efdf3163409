"""Finding what a run goes on from, and what keeps it from going on."""

from pathlib import Path
from typing import Any

from ibtrain.config import Recipe, dump_recipe
from ibtrain.data.mixture.fingerprint import changes_not_accepted, changes_of_order
from ibtrain.fencing import Incarnation
from ibtrain.files import FileError, read_json
from ibtrain.pretrained.fingerprint import differences
from ibtrain.run_directory import (
    STATE,
    RunDirectoryError,
    checkpoints,
    latest_step,
    set_aside_newer,
    step_of,
    whole_steps,
)
from ibtrain.training.checkpoint import read_state


def refuse_changes(recipe: Recipe, order: dict[str, Any], base: dict[str, str]) -> None:
    """Refuses what `find_resume` would, as far as that can be told without taking the directory
    from a run that is still in it.

    Raises:
        ValueError: when the run cannot be gone on with as it is asked.
    """
    directory = _step_to_go_on_from(recipe)
    if directory is None:
        return
    try:
        state = read_json(directory / STATE, "choose another step")
    except FileError:
        return  # it may be on its way out; whoever takes the directory looks again
    _refuse_changes(directory, state, recipe, order, base)


def find_resume(
    recipe: Recipe, order: dict[str, Any], base: dict[str, str], incarnation: Incarnation
) -> tuple[Path, int] | None:
    """The verified step directory to go on from, and its step; None to begin at the beginning.

    Raises:
        ValueError: when the run cannot be gone on with as it is asked.
        FencedError: when a later start has taken the run directory.
    """
    directory = _step_to_go_on_from(recipe)
    if directory is None:
        incarnation.write(recipe.output / "recipe.yaml", dump_recipe(recipe))
        return None
    state = read_state(directory)
    _refuse_changes(directory, state, recipe, order, base)
    incarnation.write(recipe.output / "recipe.yaml", dump_recipe(recipe))
    if recipe.checkpoint.resume_from is not None:
        set_aside_newer(recipe.output, directory, incarnation)
    return directory, state["step"]


def _refuse_changes(
    directory: Path,
    state: dict[str, Any],
    recipe: Recipe,
    order: dict[str, Any],
    base: dict[str, str],
) -> None:
    _check_model(directory, state.get("recipe", {}).get("model", {}), recipe)
    changed = differences(state.get("base", base), base)
    if changed:
        raise RunDirectoryError(
            f"{directory} was trained on another base: its {' and '.join(changed)} differ from "
            "what model names now; put the base back as it was, or start in a new output directory"
        )
    changes = changes_not_accepted(
        changes_of_order(state["order"], order), recipe.checkpoint.accept_changed_data
    )
    if changes:
        raise RunDirectoryError(
            f"{directory} was trained on other data, so going on would repeat or skip samples:\n  "
            + "\n  ".join(f"{key}: {change}" for key, change in changes.items())
            + "\nput it back as it was, or accept it with checkpoint.accept_changed_data=true, or "
            f"by name with checkpoint.accept_changed_data=[{','.join(changes)}]"
        )


def _check_model(directory: Path, then: dict[str, Any], recipe: Recipe) -> None:
    """Refuses to go on with other parts trained, or with adapters that compute something else."""
    now = recipe.model.model_dump(mode="json")
    pairs = {
        f"model.{key}": (then[key], now[key])
        for key in ("instruction_aware", "train_parts")
        if key in then
    }
    if then.get("lora") and now["lora"]:
        pairs |= {
            f"model.lora.{key}": (then["lora"][key], now["lora"][key]) for key in ("rank", "alpha")
        }
    for key, (before, found) in pairs.items():
        if before != found:
            raise RunDirectoryError(
                f"{directory} was trained with {key}={_written(before)}, and the recipe says "
                f"{_written(found)}; set it as it was, or start in a new output directory"
            )


def _written(value: Any) -> str:
    """A value as it stands in a recipe."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_written(inner)}" for key, inner in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _step_to_go_on_from(recipe: Recipe) -> Path | None:
    """The step that `resume_from` names, else the latest.

    Newer steps that this very recipe has trained since are not undone: a command with `resume_from`
    that is interrupted and given again (a job that Slurm requeues) goes on.
    """
    named = recipe.checkpoint.resume_from
    if named is None:
        return latest_step(recipe.output)
    directory = checkpoints(recipe.output) / named
    if step_of(directory) is None or directory not in whole_steps(recipe.output):
        there = ", ".join(step.name for step in whole_steps(recipe.output)) or "there is none"
        raise RunDirectoryError(
            f"checkpoint.resume_from names {named!r}, which is not a step directory in "
            f"{checkpoints(recipe.output)} ({there})"
        )
    for later in reversed(whole_steps(recipe.output)):
        if later == directory or _was_trained_by(recipe, later):
            return later
    return directory


def _was_trained_by(recipe: Recipe, step: Path) -> bool:
    try:
        state = read_json(step / STATE, "choose another step")
    except FileError:
        return False
    return bool(state.get("recipe") == recipe.model_dump(mode="json"))
