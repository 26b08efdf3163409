"""Low-rank adapters of the language model, through peft.

peft puts a layer of its own instead of each adapted linear layer, which shows in parameter
names (`q_proj.base_layer.weight`, `q_proj.lora_A.default.weight`). Everywhere outside the model a
weight keeps the name that it has without adapters, and an adapter's weight is named as peft saves
it (`q_proj.lora_A.weight`): `stored_name` takes the one to the other.

Shapes: R rank, D width of a layer's input, E of its output: A is [R, D], B is [E, R].
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ibtrain.config import LoraSection

ADAPTER = "default"
"""peft's name of the one adapter that there is."""
DEFAULT_TARGETS = {"llama": ("q_proj", "v_proj"), "t5": ("q", "v")}
_OUTPUT = "lm_head"
"""The output embedding of a Llama and of a T5."""
_BASE_LAYER, _ADAPTER_PART = ".base_layer.", f".{ADAPTER}."
A_ENDING, B_ENDING = ".lora_A.weight", ".lora_B.weight"


def stored_name(name: str) -> str:
    """The name under which a parameter of a model with adapters is stored."""
    return name.replace(_BASE_LAYER, ".").replace(_ADAPTER_PART, ".")


def is_adapter(name: str) -> bool:
    """Whether a stored name is that of an adapter's weight."""
    return name.endswith((A_ENDING, B_ENDING))


def adapter_targets(lora: LoraSection, model_type: str) -> tuple[str, ...]:
    """Names of the linear layers of a `model_type` language model that get an adapter."""
    return lora.targets or DEFAULT_TARGETS[model_type]


def peft_config(lora: LoraSection, model_type: str) -> Any:
    """The settings in peft's form (a `LoraConfig`)."""
    from peft import LoraConfig  # seconds to import, and only where there are adapters

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=sorted(adapter_targets(lora, model_type)),
        bias="none",
        task_type="SEQ_2_SEQ_LM" if model_type == "t5" else "CAUSAL_LM",
        # Values come from a source, as all others do; peft's own initialisation would fail on
        # tensors that are partitioned or have no storage.
        init_lora_weights=False,
    )


def add_adapters(language_model: PreTrainedModel, lora: LoraSection) -> None:
    """Puts an adapter beside every target, in place; their values are undefined.

    Raises:
        ValueError: when a target is no linear layer of the model, or is the output embedding where
            that is the input embedding too.
    """
    from peft import inject_adapter_in_model

    targets = adapter_targets(lora, language_model.config.model_type)
    linear = {
        name.rpartition(".")[2]
        for name, module in language_model.named_modules()
        if isinstance(module, nn.Linear)
    }
    unknown = sorted(set(targets) - linear)
    if unknown:
        raise ValueError(
            f"lora.targets names {unknown[0]!r}, which is no linear layer of this language model; "
            f"there are {', '.join(sorted(linear))}"
        )
    if _OUTPUT in targets and _is_tied(language_model):
        raise ValueError(
            f"lora.targets names {_OUTPUT!r}, whose weights are the input embedding's as well in "
            "this language model: the adapter could not be merged into them; leave it out"
        )
    config = peft_config(lora, language_model.config.model_type)
    inject_adapter_in_model(config, language_model, adapter_name=ADAPTER)


def _is_tied(language_model: PreTrainedModel) -> bool:
    """Whether output and input embeddings are one tensor."""
    output: nn.Linear = language_model.get_submodule(_OUTPUT)
    return output.weight is language_model.get_input_embeddings().weight


def merged_weight(weight_ED: Tensor, a_RD: Tensor, b_ER: Tensor, lora: LoraSection) -> Tensor:
    """The one weight [E, D] that does what a layer with its adapter does; dtype of `weight_ED`.

    Computed in fp32: W + alpha / R * B A.
    """
    change_ED = (b_ER.float() @ a_RD.float()) * (lora.alpha / lora.rank)
    return (weight_ED.float() + change_ED).to(weight_ED.dtype)


def adapter_names(weight_name: str) -> tuple[str, str]:
    """Stored names of A and B beside an adapted layer's weight (`….q_proj.weight`)."""
    layer = weight_name.removesuffix(".weight")
    return layer + A_ENDING, layer + B_ENDING


def without_adapters(names: Iterable[str]) -> list[str]:
    """Those stored names that a model without adapters has as well."""
    return [name for name in names if not is_adapter(name)]
