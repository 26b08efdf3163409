"""A trained model as a directory that transformers opens.

An InstructBLIP becomes transformers' InstructBLIP format. A model whose Q-Former reads no
instruction becomes BLIP-2 format, for transformers' InstructBLIP always feeds it one; its Q-Former
tokenizer is written beside it all the same, so that ibtrain opens the export as any other model.

The directory appears whole and proven, or not at all.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Blip2Config,
    Blip2Processor,
    GenerationConfig,
    InstructBlipConfig,
    InstructBlipProcessor,
    PreTrainedTokenizerBase,
)

from ibtrain.export.all_releases import config_in_all_words, processor_in_all_words
from ibtrain.export.card import check_evaluation
from ibtrain.export.directory import (
    ExportReport,
    failures_of_the_disk,
    write_report,
    written_whole,
)
from ibtrain.export.peft import adapters_of, write_adapters
from ibtrain.export.proof import prove_huggingface
from ibtrain.export.weight_shards import SHARD_BYTES, write_weights
from ibtrain.model.t5 import start_token
from ibtrain.pretrained.finding import find_model
from ibtrain.pretrained.found import FoundModel
from ibtrain.pretrained.peft import ADAPTER_DIRECTORY
from ibtrain.pretrained.processor import open_image_processor
from ibtrain.pretrained.sources import GrownSource, to_blip2_name
from ibtrain.pretrained.tensors import TensorSource
from ibtrain.tokenization import open_tokenizer

_IMAGE_TOKEN = "<image>"
_QFORMER_TOKENIZER = "qformer_tokenizer"
_EMBEDDINGS = tuple(
    f"language_model.{name}.weight" for name in ("model.embed_tokens", "shared", "lm_head")
)
# What a base's configuration may carry that is not the architecture's.
_NOT_EXPORTED = ("instruction_aware", "architectures", "dtype", "torch_dtype", "_name_or_path")


def export_huggingface(
    model_path: Path,
    out: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    dtype: torch.dtype | None = None,
    keep_adapter: bool = False,
    evaluation: Path | None = None,
) -> ExportReport:
    """Writes a model in transformers' format, and proves it by opening it with transformers.

    Args:
        model_path: see `ibtrain.pretrained.finding.find_model`.
        out: the directory to make; it must not exist.
        shard_bytes: the size above which weights are split into several files; writing and proof
            take this much memory and at most 1 GiB beside it.
        dtype: of every weight written; default: each as it is stored (the trained ones fp32).
        keep_adapter: leave adapters out of the weights they belong to, and write them in peft's
            format to `adapter/`; default: merged.
        evaluation: a directory of `ibtrain evaluate`, whose scores stand in the model card.

    Raises:
        ValueError: when the model cannot be opened, has no adapter to keep, or `out` is there.
        ExportError: when transformers makes something else of the export.
        OSError: when the file system cannot take it.
    """
    with written_whole(out) as directory:
        found = find_model(model_path)
        check_evaluation(found, evaluation)
        tokenizer = _write_processor(found, directory)
        found = with_rows(found, len(tokenizer))
        written_model = found
        if keep_adapter:
            adapters = adapters_of(found, model_path)
            write_adapters(found, adapters, directory / ADAPTER_DIRECTORY)
            written_model = replace(found, sources=adapters.without)
        written = write_weights(_weights(written_model, dtype), directory, shard_bytes)
        _write_configs(found, tokenizer, directory, written.dtype)
        kept_rounded = keep_adapter and _is_half(written.dtype)
        proof = prove_huggingface(
            found,
            directory,
            rounded=dtype not in (None, torch.float32) or kept_rounded,
            memory=shard_bytes + 2**30,
        )
        counts: dict[str, Any] = {
            key: getattr(written, key) for key in ("parameters", "bytes", "shards")
        }
        if keep_adapter:
            counts["adapters"] = "apart"
        kind = "instructblip" if found.instruction_aware else "blip-2"
        write_report(found, directory, kind, counts, proof, evaluation)
    return ExportReport(out, proof)


def with_rows(found: FoundModel, tokens: int) -> FoundModel:
    """The model with an embedding for each of `tokens` tokens: transformers' processor adds one for
    the image, which not every base has a row for.
    """
    if tokens <= found.config.text_config.vocab_size:
        return found
    config = copy.deepcopy(found.config)
    config.text_config.vocab_size = tokens
    rows = dict.fromkeys(_EMBEDDINGS, tokens)

    def grown(sources: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
        return {
            name: GrownSource(source, {name: rows[name]}) if name in rows else source
            for name, source in sources.items()
        }

    adapters = found.adapters
    if adapters is not None:
        adapters = replace(adapters, without=grown(adapters.without))
    return replace(found, config=config, sources=grown(found.sources), adapters=adapters)


def _is_half(dtype: torch.dtype) -> bool:
    return dtype in (torch.float16, torch.bfloat16)


def _write_processor(found: FoundModel, directory: Path) -> PreTrainedTokenizerBase:
    """The processor with both tokenizers; returns the language model's, to which it
    adds the image token where that is lacking.

    Raises:
        ValueError: when the base has no image processor, or the Q-Former no row for a token.
        OSError: when the file system cannot take it.
    """
    source = found.processor_directory
    image_processor = open_image_processor(source)
    size = found.config.vision_config.image_size
    image_processor.size = {"height": size, "width": size}
    tokenizer = open_tokenizer(source)
    qformer = open_tokenizer(source / _QFORMER_TOKENIZER)
    queries = found.config.num_query_tokens
    with failures_of_the_disk(directory):
        if found.instruction_aware:
            InstructBlipProcessor(
                image_processor, tokenizer, qformer, num_query_tokens=queries
            ).save_pretrained(directory)
        else:
            Blip2Processor(image_processor, tokenizer, num_query_tokens=queries).save_pretrained(
                directory
            )
            qformer.save_pretrained(directory / _QFORMER_TOKENIZER)
        processor_in_all_words(directory, tokenizer, qformer)
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
    text = found.config.text_config
    if text.model_type == "t5":
        ids["decoder_start_token_id"] = start_token(text)
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
    config_in_all_words(directory, text)
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
