"""A trained model as a directory that transformers opens.

An InstructBLIP becomes transformers' InstructBLIP format. A model whose Q-Former reads no
instruction becomes BLIP-2 format, for transformers' InstructBLIP always feeds it one; its Q-Former
tokenizer is written beside it all the same, so that ibtrain opens the export as any other model.

The directory appears whole and proven, or not at all.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    AutoTokenizer,
    Blip2Config,
    Blip2Processor,
    BlipImageProcessor,
    GenerationConfig,
    InstructBlipConfig,
    InstructBlipProcessor,
    PreTrainedTokenizerBase,
)

from ibtrain import __version__
from ibtrain.config import dump_recipe
from ibtrain.export.proof import prove
from ibtrain.export.weight_shards import SHARD_BYTES, WrittenWeights, write_weights
from ibtrain.model.opening import RECIPE_FILE, FoundModel, find_model
from ibtrain.model.sources import to_blip2_name
from ibtrain.model.weights import check_vocabularies
from ibtrain.run_directory import sync_directory

REPORT_FILE = "export_report.json"
_IMAGE_TOKEN = "<image>"
_QFORMER_TOKENIZER = "qformer_tokenizer"
# What a base's configuration may carry that is not the architecture's.
_NOT_EXPORTED = ("instruction_aware", "architectures", "dtype", "torch_dtype", "_name_or_path")


@dataclass(frozen=True)
class ExportReport:
    """Where an export lies and what was proven of it (see `ibtrain.export.proof.prove`)."""

    directory: Path
    proof: dict[str, Any]


def export_huggingface(
    model_path: Path,
    out: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    dtype: torch.dtype | None = None,
) -> ExportReport:
    """Writes a model in transformers' format, and proves it by opening it with transformers.

    Args:
        model_path: see `ibtrain.model.opening.find_model`.
        out: the directory to make; it must not exist, or be empty.
        shard_bytes: the size above which weights are split into several files, and the memory
            that writing takes. The proof takes one fp32 copy of the model.
        dtype: of every weight written; default: each as it is stored (the trained ones fp32).

    Raises:
        ValueError: when the model cannot be opened, its embeddings have no row for the image
            token, or `out` is in use.
        ExportError: when transformers makes something else of the export.
        OSError: when the file system cannot take it.
    """
    _check_out(out)
    found = find_model(model_path)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.writing-", dir=out.parent))
    try:
        tokenizer = _write_processor(found, temporary)
        written = write_weights(_weights(found, dtype), temporary, shard_bytes)
        _write_configs(found, tokenizer, temporary, written.dtype)
        if found.recipe is not None:
            (temporary / RECIPE_FILE).write_text(dump_recipe(found.recipe), encoding="utf-8")
        proof = prove(found, temporary, rounded=dtype not in (None, torch.float32))
        report = _report(found, written, proof)
        (temporary / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        _publish(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return ExportReport(out, proof)


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; an export is a directory: give another name")
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(
            f"{out} is not empty, and an export replaces nothing; give another directory or "
            "remove it"
        )


def _write_processor(found: FoundModel, directory: Path) -> PreTrainedTokenizerBase:
    """The processor with both tokenizers; returns the language model's, with its image token.

    Raises:
        ValueError: when the base has no image processor or no row for the image token.
    """
    source = found.processor_directory
    try:
        image_processor = BlipImageProcessor.from_pretrained(source, local_files_only=True)
    except OSError as error:
        raise ValueError(
            f"{source} has no image processor ({error}); a base directory holds "
            "preprocessor_config.json or processor_config.json beside its tokenizers"
        ) from error
    size = found.config.vision_config.image_size
    image_processor.size = {"height": size, "width": size}
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    qformer = AutoTokenizer.from_pretrained(
        source / _QFORMER_TOKENIZER, local_files_only=True, use_fast=True
    )
    queries = found.config.num_query_tokens
    if found.instruction_aware:
        InstructBlipProcessor(
            image_processor, tokenizer, qformer, num_query_tokens=queries
        ).save_pretrained(directory)
    else:
        Blip2Processor(image_processor, tokenizer, num_query_tokens=queries).save_pretrained(
            directory
        )
        qformer.save_pretrained(directory / _QFORMER_TOKENIZER)
    # Building a processor adds the image token where the base's tokenizer lacks it.
    check_vocabularies(
        found.config, len(tokenizer), len(qformer), f"{source} with {_IMAGE_TOKEN} added"
    )
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def _weights(found: FoundModel, dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
    """Every weight under the name it has in the export's format, one at a time."""
    for name in sorted(found.sources):
        tensor = found.sources[name].get(name).to(dtype=dtype).contiguous()
        yield name if found.instruction_aware else to_blip2_name(name), tensor


def _write_configs(
    found: FoundModel, tokenizer: PreTrainedTokenizerBase, directory: Path, dtype: torch.dtype
) -> None:
    """config.json and generation_config.json.

    The special ids are the tokenizer's: transformers generates with those of the language model's
    section, and bases are known to carry others there.
    """
    end = tokenizer.eos_token_id
    ids = {
        "bos_token_id": end if tokenizer.bos_token_id is None else tokenizer.bos_token_id,
        "eos_token_id": end,
        "pad_token_id": end if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    }
    aware = found.instruction_aware
    kind = InstructBlipConfig if aware else Blip2Config
    config = kind(
        vision_config=_section(found, "vision_config", keep_type=aware),
        qformer_config=_section(found, "qformer_config", keep_type=aware),
        text_config=_section(found, "text_config", keep_type=True) | ids,
        num_query_tokens=found.config.num_query_tokens,
        image_token_index=tokenizer.convert_tokens_to_ids(_IMAGE_TOKEN),
    )
    name = "InstructBlip" if aware else "Blip2"
    config.architectures = [f"{name}ForConditionalGeneration"]
    for part in (config, config.vision_config, config.qformer_config, config.text_config):
        part.dtype = dtype
    config.save_pretrained(directory)
    GenerationConfig(**ids).save_pretrained(directory)


def _section(found: FoundModel, name: str, *, keep_type: bool) -> dict[str, Any]:
    """A part's configuration; BLIP-2 has types of its own for what is otherwise the same."""
    left_out = (*_NOT_EXPORTED, *(() if keep_type else ("model_type",)))
    values = getattr(found.config, name).to_dict()
    return {
        key: value
        for key, value in values.items()
        if key not in left_out and "attn_implementation" not in key
    }


def _report(found: FoundModel, written: WrittenWeights, proof: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": "instructblip" if found.instruction_aware else "blip-2",
        "run": found.recipe.name if found.recipe is not None else None,
        "step": found.step,
        "parameters": written.parameters,
        "bytes": written.bytes,
        "shards": written.shards,
        "ibtrain": __version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "proof": proof,
    }


def _publish(temporary: Path, out: Path) -> None:
    """Makes every file durable, then renames the directory into its place."""
    for path in temporary.rglob("*"):
        if path.is_dir():
            sync_directory(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    temporary.chmod(0o755)
    sync_directory(temporary)
    if out.is_dir():
        out.rmdir()  # it is empty
    temporary.rename(out)
    sync_directory(out.parent)
