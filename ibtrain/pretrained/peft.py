"""A directory in peft's format: settings and weights of the language model's adapters.

peft names a weight by its path in the model that it was saved from. Two paths are written: that
within the language model alone and that within the whole InstructBLIP, so that
`PeftModel.from_pretrained` finds the adapters on either; peft would otherwise open the directory on
the other one, change nothing, and only warn.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ibtrain.config import LoraSection
from ibtrain.files import read_json
from ibtrain.model.lora import adapter_targets
from ibtrain.pretrained.sources import RenamedSource
from ibtrain.pretrained.tensors import SafetensorsSource, TensorSource

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_DIRECTORY = "adapter"
"""Within an export of the whole model that keeps its adapters apart."""
_PREFIX = "base_model.model."
_LANGUAGE = "language_model."
# What would make an adapter compute something else than W + alpha / rank * B A.
_PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "use_dora": False,
    "use_rslora": False,
    "lora_bias": False,
    "fan_in_fan_out": False,
    "bias": "none",
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "layers_to_transform": None,
    "alora_invocation_tokens": None,
}
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq")
"""Initialisations with which peft takes a part of the base's weights away."""


def peft_names(name: str) -> tuple[str, str]:
    """Both names that peft gives an adapter's weight: on the language model, on the whole model."""
    return _PREFIX + name.removeprefix(_LANGUAGE), _PREFIX + name


def read_adapter_settings(directory: Path) -> LoraSection:
    """The settings in a directory in peft's format.

    Raises:
        ValueError: when there are none, or they are of another kind than is trained here.
    """
    file = directory / ADAPTER_CONFIG
    values: Mapping[str, Any] = read_json(file, "export the adapter again")
    for key, plain in _PLAIN.items():
        found = values.get(key, plain)
        if found != plain and (found or plain):
            raise ValueError(
                f"{file}: {key} is {found!r}, and adapters with anything but {plain!r} are not "
                "supported"
            )
    begun = values.get("init_lora_weights")
    if isinstance(begun, str) and begun.startswith(_CHANGE_THE_BASE):
        raise ValueError(
            f"{file}: init_lora_weights is {begun!r}, which changes the base's weights as well, "
            "and that is not supported"
        )
    targets = values.get("target_modules")
    if not isinstance(targets, list) or not targets:
        raise ValueError(f"{file}: target_modules is {targets!r}; a list of layer names is wanted")
    settings = {
        "rank": values.get("r"),
        "alpha": values.get("lora_alpha"),
        "dropout": values.get("lora_dropout", 0.0),
        "targets": targets,
    }
    try:
        lora = LoraSection.model_validate(settings)
    except ValidationError as error:
        fault = error.errors()[0]
        raise ValueError(
            f"{file}: {fault['loc'][0]} cannot be {fault['input']!r} ({fault['msg']}); export the "
            "adapter again"
        ) from error
    return lora.model_copy(update={"targets": tuple(sorted(targets))})


def check_adapter_settings(directory: Path, trained: LoraSection, model_type: str) -> None:
    """Refuses adapters whose settings are not those that they were trained with.

    Args:
        directory: in peft's format.
        trained: the settings in the recipe beside them.
        model_type: the language model's.

    Raises:
        ValueError: naming the first setting that differs.
    """
    found = read_adapter_settings(directory)
    pairs = {
        "r": (found.rank, trained.rank),
        "lora_alpha": (found.alpha, trained.alpha),
        "target_modules": tuple(
            sorted(adapter_targets(lora, model_type)) for lora in (found, trained)
        ),
    }
    for key, (now, then) in pairs.items():
        if now != then:
            raise ValueError(
                f"{directory / ADAPTER_CONFIG}: {key} is {now}, and the recipe beside it was "
                f"trained with {then}; the files are of two exports, export the model again"
            )


def adapter_source(directory: Path) -> TensorSource:
    """The weights in a directory in peft's format, under our names.

    Raises:
        ValueError: when the file is missing or not whole.
    """
    source = SafetensorsSource([directory / ADAPTER_WEIGHTS], f"adapter {directory}")

    def rename(name: str) -> str:
        name = name.removeprefix(_PREFIX)
        return name if name.startswith(_LANGUAGE) else _LANGUAGE + name

    return RenamedSource(source, rename)
