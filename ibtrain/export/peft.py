"""The adapters of a trained model in peft's own format, to be put on the base with peft.

What was trained besides (queries, Q-Former, projection) lies beside them in `trained.safetensors`,
of which peft takes no notice; with it and the recipe ibtrain opens the directory as the model.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from ibtrain.config import ModelSection
from ibtrain.export.card import check_evaluation, hub_name
from ibtrain.export.directory import ExportReport, write_report, written_whole
from ibtrain.export.proof import prove_peft
from ibtrain.export.weight_shards import write_safetensors
from ibtrain.model.lora import is_adapter, peft_config
from ibtrain.pretrained.finding import TRAINED_BESIDE, find_model
from ibtrain.pretrained.found import Adapters, FoundModel
from ibtrain.pretrained.peft import ADAPTER_WEIGHTS, peft_names


def export_peft(model_path: Path, out: Path, *, evaluation: Path | None = None) -> ExportReport:
    """Writes a model's adapters, and proves them by opening them with peft on the base.

    Args:
        model_path: see `ibtrain.pretrained.finding.find_model`.
        out: the directory to make; it must not exist.
        evaluation: a directory of `ibtrain evaluate`, whose scores stand in the model card.

    Raises:
        ValueError: when the model cannot be opened or has no adapters, or `out` is there already.
        ExportError: when peft makes something else of them.
        OSError: when the file system cannot take it.
    """
    with written_whole(out) as directory:
        found = find_model(model_path)
        check_evaluation(found, evaluation)
        adapters = adapters_of(found, model_path)
        written = write_adapters(found, adapters, directory)
        beside = {
            name: found.sources[name].get(name) for name in found.trained if not is_adapter(name)
        }
        if beside:
            write_safetensors(beside, directory / TRAINED_BESIDE)
        proof = prove_peft(found, directory)
        written["parameters"] += sum(tensor.numel() for tensor in beside.values())
        written["bytes"] += sum(tensor.nbytes for tensor in beside.values())
        write_report(found, directory, "peft", written, proof, evaluation)
    return ExportReport(out, proof)


def adapters_of(found: FoundModel, model_path: Path) -> Adapters:
    """The adapters of a model.

    Raises:
        ValueError: when it has none.
    """
    if found.adapters is None:
        raise ValueError(
            f"{model_path} has no adapters to write: its language model was not trained with "
            "model.train_parts.language=lora; export it with --to hf"
        )
    return found.adapters


def write_adapters(found: FoundModel, adapters: Adapters, directory: Path) -> dict[str, int]:
    """Writes adapter_config.json and adapter_model.safetensors; returns parameters and bytes."""
    config = peft_config(adapters.lora, found.config.text_config.model_type)
    config.base_model_name_or_path = _base_name(found)
    config.inference_mode = True
    config.save_pretrained(directory)
    tensors = dict(_named(adapters))
    write_safetensors(tensors, directory / ADAPTER_WEIGHTS)
    return {
        "parameters": sum(t.numel() for t in tensors.values()) // 2,  # each has two names
        "bytes": sum(t.nbytes for t in tensors.values()),
    }


def _named(adapters: Adapters) -> Iterator[tuple[str, Tensor]]:
    """Each weight under both names that peft may look for; the second is a copy."""
    for name, source in adapters.sources.items():
        tensor = source.get(name)
        on_language, on_whole = peft_names(name)
        yield on_language, tensor
        yield on_whole, tensor.clone()


def _base_name(found: FoundModel) -> str | None:
    """What `AutoPeftModel` loads: the base's name on the hub, else its directory."""
    section: ModelSection | None = None if found.recipe is None else found.recipe.model
    if section is None:
        return None
    named: Any = section.base if section.parts is None else section.parts.language
    return None if named is None else hub_name(named) or str(named)
