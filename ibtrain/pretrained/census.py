"""What a model's weights are, in the words of the paper, and where each came from."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Protocol

from ibtrain.model.lora import is_adapter

_TEXT_PATH = re.compile(
    r"qformer\.embeddings\.(?:word|position)_embeddings\.|"
    r"qformer\.encoder\.layer\.\d+\.(?:intermediate|output)\."
)
TEXT_PATH = "Q-Former text path"
_ORDER = (
    "vision tower",
    "vision LayerNorm",
    "queries",
    "Q-Former",
    TEXT_PATH,
    "projection",
    "language model",
    "adapters",
)
_COMPONENTS = (
    ("vision_model.post_layernorm.", "vision LayerNorm"),
    ("vision_model.", "vision tower"),
    ("query_tokens", "queries"),
    ("qformer.", "Q-Former"),
    ("language_projection.", "projection"),
    ("language_model.", "language model"),
)
_REMEDIES = {
    "vision tower": "name EVA-ViT-g's file in model.parts.vision",
    TEXT_PATH: (
        "BLIP-2 leaves it out after its first stage: name that checkpoint in model.parts.stage1, "
        "or train without it (model.instruction_aware=false)"
    ),
    "projection": "to begin it at random on purpose, write model.parts.random=[projection]",
    "language model": "name its directory in model.parts.language",
}


class _Source(Protocol):
    description: str


@dataclass(frozen=True)
class CensusRow:
    """One component of a model as one source gave it."""

    component: str
    source: str
    tensors: int
    parameters: int


def component_of(name: str) -> str:
    """The component that a parameter belongs to."""
    if is_adapter(name):
        return "adapters"
    if _TEXT_PATH.match(name):
        return TEXT_PATH
    for prefix, component in _COMPONENTS:
        if name.startswith(prefix):
            return component
    raise ValueError(f"parameter {name!r} belongs to no component of an InstructBLIP model")


def census(chosen: Mapping[str, _Source], shapes: Mapping[str, tuple[int, ...]]) -> list[CensusRow]:
    """What came from where: a row for each component and source, in the model's order."""
    counted: dict[tuple[str, str], list[int]] = {}
    for name, source in chosen.items():
        counted.setdefault((component_of(name), source.description), []).append(prod(shapes[name]))
    return [
        CensusRow(component, source, len(numbers), sum(numbers))
        for (component, source), numbers in sorted(
            counted.items(), key=lambda item: _ORDER.index(item[0][0])
        )
    ]


def describe_missing(missing: Iterable[str], there: Iterable[str]) -> str:
    """How many of which component are missing, and what to do about it.

    Args:
        missing: names of parameters that no source has.
        there: names of those that one has.
    """
    counts = Counter(component_of(name) for name in missing)
    begun = {component_of(name) for name in there}
    ordered = sorted(counts, key=_ORDER.index)
    said = ", ".join(f"{counts[component]} of the {component}" for component in ordered)
    remedies = [_REMEDIES[one] for one in ordered if one in _REMEDIES and one not in begun]
    if begun.intersection(counts):
        remedies.append("where a part is there and not whole, copy its files again")
    return "; ".join([said, *remedies])
