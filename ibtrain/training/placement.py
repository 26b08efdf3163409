"""How a run is laid over its GPUs: `sharding: auto`, and RUN/plan.json."""

import contextlib
import json
from dataclasses import asdict
from typing import Any

import torch

from ibtrain.config import Recipe, RecipeError
from ibtrain.distributed.ranks import Ranks
from ibtrain.fencing import Incarnation
from ibtrain.files import FileError, read_json
from ibtrain.planning.devices import device_named
from ibtrain.planning.plan import Cluster, make_plan
from ibtrain.sharding import AUTO

PLAN = "plan.json"
ON_A_CPU = "zero2"
_NAMED = "the recipe names it"


def choose_sharding(recipe: Recipe, ranks: Ranks) -> dict[str, Any]:
    """What RUN/plan.json holds: the `sharding` of a run, `because` of what, and the plan behind it.

    Called by one rank.

    Raises:
        RecipeError: when the planner is to choose, and nothing fits or the GPU is not known to it.
    """
    at = {"ranks": ranks.world, "ranks_per_node": ranks.local_world}
    if recipe.sharding != AUTO:
        return {"sharding": recipe.sharding, "because": _NAMED} | at
    if not torch.cuda.is_available():
        because = "there is no GPU to plan for; on CPUs every rank has a whole model"
        return {"sharding": ON_A_CPU, "because": because} | at
    nodes = -(-ranks.world // ranks.local_world)
    try:
        device = device_named(torch.cuda.get_device_name())
    except ValueError as error:
        raise RecipeError(f"sharding is auto, and the planner knows {error}; name one") from error
    plan = make_plan(recipe, Cluster(nodes, ranks.local_world, device))
    if not plan.chosen:
        raise RecipeError(f"sharding is auto, and {plan.because}")
    return {"sharding": plan.chosen, "because": plan.because, **at, "plan": asdict(plan)}


def write_plan(incarnation: Incarnation, plan: dict[str, Any]) -> None:
    """Writes RUN/plan.json, unless it tells more of this very sharding: why it was named.

    Raises:
        FencedError: when a later start has taken the run directory.
    """
    path = incarnation.run / PLAN
    if plan["because"] == _NAMED and path.is_file():
        with contextlib.suppress(FileError):
            if read_json(path, "remove it").get("sharding") == plan["sharding"]:
                return
    incarnation.write(path, json.dumps(plan, indent=2) + "\n")
