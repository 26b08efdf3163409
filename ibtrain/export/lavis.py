"""A trained model as the trimmed state dict that LAVIS loads (`model.finetuned` in its
configuration): what InstructBLIP trains, under LAVIS's names, without vision tower and language
model unless they were trained.

The directory holds `trimmed.pth` (a state dict under "model"), the recipe and the report; ibtrain
opens it on the recipe's base.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ibtrain.export.card import check_evaluation
from ibtrain.export.directory import (
    ExportReport,
    failures_of_the_disk,
    write_report,
    written_whole,
)
from ibtrain.export.proof import prove_lavis
from ibtrain.model.instructblip import part_of
from ibtrain.model.lora import adapter_names
from ibtrain.pretrained.finding import TRIMMED, find_model
from ibtrain.pretrained.found import FoundModel
from ibtrain.pretrained.lavis import to_lavis


def export_lavis(
    model_path: Path, out: Path, *, whole: bool = False, evaluation: Path | None = None
) -> ExportReport:
    """Writes a model under LAVIS's names, and proves it by opening it on the base.

    Adapters are merged into the language model's weights. Memory is that of the largest tensor.

    Args:
        model_path: see `ibtrain.pretrained.finding.find_model`.
        out: the directory to make; it must not exist.
        whole: every weight, and not only what was trained.
        evaluation: a directory of `ibtrain evaluate`, whose scores stand in the model card.

    Raises:
        ValueError: when the model cannot be opened, or `out` is there already.
        ExportError: when the export does not do what the model does.
        OSError: when the file system cannot take it.
    """
    with written_whole(out) as directory:
        found = find_model(model_path)
        check_evaluation(found, evaluation)
        names = sorted(found.sources) if whole else exported_names(found)
        encoder_decoder = found.config.text_config.model_type == "t5"

        def tensors() -> Iterator[tuple[str, Tensor]]:
            read = ((name, found.sources[name].get(name)) for name in names)
            return to_lavis(read, encoder_decoder=encoder_decoder)

        written = write_torch_file(tensors, directory / TRIMMED)
        proof = prove_lavis(found, directory)
        write_report(found, directory, "lavis", written, proof, evaluation)
    return ExportReport(out, proof)


def exported_names(found: FoundModel) -> list[str]:
    """What LAVIS's own trimmed files hold (queries, Q-Former, projection, the tower's LayerNorm),
    and what was trained besides, with adapters merged in.
    """
    adapters = found.adapters.sources if found.adapters is not None else {}
    return sorted(
        name
        for name in found.sources
        if part_of(name) in ("qformer", "projection")
        or name in found.trained
        or adapter_names(name)[0] in adapters
    )


def write_torch_file(
    tensors: Callable[[], Iterable[tuple[str, Tensor]]], file: Path
) -> dict[str, int]:
    """Writes a state dict under "model" as torch.save does, holding one tensor at a time.

    torch writes the file with room for the values, which are then written into it.

    Args:
        tensors: gives names and tensors, the same at each call; it is called twice.
        file: where to.

    Returns:
        Numbers of parameters and bytes.

    Raises:
        OSError: when the file system cannot take it.
    """
    planned = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors()}
    with FakeTensorMode():
        empty = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in planned.items()}
    with failures_of_the_disk(file), torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save({"model": empty}, file)
    with FakeTensorMode():
        laid_out: dict[str, Any] = torch.load(file, weights_only=True)["model"]
    written = {"parameters": 0, "bytes": 0}
    with file.open("r+b") as opened:
        for name, tensor in tensors():
            opened.seek(laid_out[name].untyped_storage()._checkpoint_offset)
            values = tensor.detach().contiguous().flatten().view(torch.uint8)
            opened.write(values.numpy().data)
            written["parameters"] += tensor.numel()
            written["bytes"] += tensor.nbytes
    return written
