"""What determines the order of a mixture's samples, as values that two runs can be held against."""

from collections.abc import Sequence
from typing import Any

from ibtrain.config import Recipe
from ibtrain.data.mixture.order import ORDER_VERSION, canonical_nodes
from ibtrain.data.mixture.shares import Mixture
from ibtrain.data.shards.records import fingerprint


def order_fingerprint(recipe: Recipe, mixture: Mixture) -> dict[str, Any]:
    """Everything that determines which sample comes at which step, as plain JSON values."""
    return {
        "version": ORDER_VERSION,
        "seed": recipe.seed,
        "global_batch": mixture.global_batch,
        "epoch_samples": mixture.epoch_samples,
        "canonical_nodes": canonical_nodes(mixture.global_batch),
        "draw": mixture.draw,
        "prompts": recipe.data.prompts,
        "augmentation": recipe.data.augmentation,
        "image_size": recipe.data.image_size,
        "datasets": {
            dataset.name: {
                "share": dataset.share,
                "samples": dataset.size,
                "shards": fingerprint(dataset.index),
                "draws": {stratum.form or "all": stratum.draws for stratum in dataset.strata},
            }
            for dataset in mixture.datasets
        },
    }


def changes_of_order(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """What differs between two fingerprints: dotted key to "was X, is Y"; empty where nothing
    does.
    """
    old, new = _flat(before), _flat(now)
    changes = {}
    for key in sorted(set(old) | set(new)):
        if key not in old:
            changes[key] = f"is new ({new[key]})"
        elif key not in new:
            changes[key] = f"is gone (was {old[key]})"
        elif old[key] != new[key]:
            changes[key] = f"was {old[key]}, is {new[key]}"
    return changes


def changes_not_accepted(changes: dict[str, str], accepted: bool | Sequence[str]) -> dict[str, str]:
    """The changes that are not covered by `accepted`: all of them, or keys and what begins so
    ("datasets.vqav2" stands for its share, samples, shards and draws).
    """
    if isinstance(accepted, bool):
        return {} if accepted else changes
    return {
        key: change
        for key, change in changes.items()
        if not any(key == name or key.startswith(f"{name}.") for name in accepted)
    }


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
