"""Whether weights and a model belong together: which source each parameter is read from."""

import json
from collections.abc import Sequence

import torch
from transformers import InstructBlipConfig

from ibtrain.config import LoraSection
from ibtrain.model.instructblip import InstructBlip
from ibtrain.model.lora import is_adapter
from ibtrain.pretrained.census import describe_missing
from ibtrain.pretrained.configuration import UNUSABLE
from ibtrain.pretrained.tensors import SURPLUS, TensorSource

MOST_LAYERS = 1000
"""No model has near as many, and each takes time and memory to lay out, even without weights."""
_SHAPES: dict[str, dict[str, tuple[int, ...]]] = {}
_MOST_SHAPES = 8


def parameter_shapes(
    config: InstructBlipConfig, instruction_aware: bool = True, lora: LoraSection | None = None
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all parameters, from a model on the meta device.

    A start asks for them half a dozen times, and at 13B such a model takes 0.7 s: it is built once.

    Raises:
        ValueError: when no model can be built of the configuration, or adapters do not fit it.
    """
    sections = config.to_dict()
    sections["qformer_config"].pop("encoder_hidden_size", None)  # the model sets it
    adapters = None if lora is None else lora.model_dump(mode="json")
    key = json.dumps([sections, instruction_aware, adapters], sort_keys=True, default=str)
    if key not in _SHAPES:
        if len(_SHAPES) == _MOST_SHAPES:
            _SHAPES.clear()
        _SHAPES[key] = _shapes(config, instruction_aware, lora)
    return dict(_SHAPES[key])


def _shapes(
    config: InstructBlipConfig, instruction_aware: bool, lora: LoraSection | None
) -> dict[str, tuple[int, ...]]:
    where = f"{config.name_or_path}/config.json" if config.name_or_path else "the given sizes"
    _check_sizes(config, where)
    try:
        with torch.device("meta"):
            model = InstructBlip(config, instruction_aware, lora)
    except ValueError:
        raise
    except UNUSABLE as error:
        first = str(error).strip().partition("\n")[0][:200]
        raise ValueError(
            f"no model can be built of {where}: {type(error).__name__}, {first}; correct the "
            "value, or take the configuration that belongs to the weights"
        ) from error
    return {name: tuple(parameter.shape) for name, parameter in model.weights()}


def _check_sizes(config: InstructBlipConfig, where: str) -> None:
    for key in ("vision_config", "qformer_config", "text_config"):
        layers = getattr(config, key).num_hidden_layers
        if not isinstance(layers, int) or not 0 < layers <= MOST_LAYERS:
            raise ValueError(
                f"{where}: {key} has {str(layers)[:40]!r} layers, and a model has 1 to "
                f"{MOST_LAYERS}; take the configuration that belongs to the weights"
            )
    for key in ("vision_config", "qformer_config"):
        heads, width = getattr(config, key).num_attention_heads, getattr(config, key).hidden_size
        numbers = isinstance(heads, int) and isinstance(width, int)
        if not numbers or heads < 1 or width % heads:
            raise ValueError(
                f"{where}: {key}.num_attention_heads is {str(heads)[:40]}, which does not divide "
                f"{key}.hidden_size ({str(width)[:40]}); take the configuration that belongs to "
                "the weights"
            )


def choose_sources(
    config: InstructBlipConfig,
    instruction_aware: bool,
    sources: Sequence[TensorSource],
    lora: LoraSection | None = None,
) -> dict[str, TensorSource]:
    """For each parameter the last source that has it, with every shape checked.

    Raises:
        ValueError: when a parameter is in no source (it would silently stay random), a source
            holds a tensor that the model does not know, or a shape differs.
    """
    wanted = parameter_shapes(config, instruction_aware, lora)
    # The ablation takes the same base and leaves the Q-Former's text weights out.
    known = wanted if instruction_aware else parameter_shapes(config, True, lora)
    chosen: dict[str, TensorSource] = {}
    for source in sources:
        unknown = sorted(n for n in set(source.shapes()) - set(known) if not SURPLUS.match(n))
        if unknown:
            raise ValueError(
                f"{source.description} holds {len(unknown)} tensors that an InstructBLIP of this "
                f"configuration does not have, the first is {_as_stored(source, unknown[0])!r}; "
                f"{_why_unknown(unknown[0])}"
            )
        for name, shape in source.shapes().items():
            if name not in wanted:
                continue
            if tuple(shape) != wanted[name]:
                raise ValueError(
                    f"{source.description}: {name} is {list(shape)}, the configuration wants "
                    f"{list(wanted[name])}; {_why_shapes_differ(name, shape, wanted[name])}"
                )
            chosen[name] = source
    missing = sorted(set(wanted) - set(chosen))
    if missing:
        described = ", ".join(source.description for source in sources)
        raise ValueError(
            f"{len(missing)} parameters are in none of the given weights ({described}) and would "
            f"stay random, the first is {missing[0]!r}: {describe_missing(missing, chosen)}"
        )
    return chosen


def _as_stored(source: TensorSource, name: str) -> str:
    """A tensor's name in its file, where the source gives it another."""
    stored: str = getattr(source, "stored_name", str)(name)
    return stored


def _why_unknown(name: str) -> str:
    if is_adapter(name):
        return "are lora.targets those that it was trained with?"
    return "is config.json its own?"


def _why_shapes_differ(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    if is_adapter(name):
        return "adapters and their settings (rank, targets) do not belong together"
    if name.startswith("language_projection.") and found[0] != wanted[0]:
        return (
            f"they were trained with a language model of width {found[0]}, and this one's is "
            f"{wanted[0]}"
        )
    return "weights and config.json do not belong together"
