"""Tokenizers and image processor of a base that has no directory of them: made from its parts.

They are written to a directory that lives as long as the process, so that all that opens a base's
tokenizers opens these in the same way.
"""

import tempfile
from functools import lru_cache
from pathlib import Path

from transformers import (
    BertTokenizerFast,
    BlipImageProcessor,
    PreTrainedTokenizerBase,
)

from ibtrain.config import ModelSection
from ibtrain.files import read_json
from ibtrain.pretrained.configuration import UNUSABLE, open_config, read_model_type
from ibtrain.pretrained.hub import resolve_directory
from ibtrain.tokenization import open_tokenizer

QFORMER_TOKENIZER = "qformer_tokenizer"
_VICUNA_TOKENS = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>"}
_LIVING: list[tempfile.TemporaryDirectory[str]] = []


@lru_cache
def parts_processor(section_json: str) -> Path:
    """The directory made for a base that is given in parts.

    Args:
        section_json: the recipe's `model` section, as JSON.

    Raises:
        ValueError: when a tokenizer is missing or is not the one it should be.
    """
    section = ModelSection.model_validate_json(section_json)
    assert section.parts is not None
    size = section.parts.vision_config.get("image_size", 224)
    language, qformer = language_tokenizer(section), qformer_tokenizer(section)
    directory = _living_directory()
    image_processor = BlipImageProcessor(size={"height": size, "width": size}, do_resize=True)
    image_processor.save_pretrained(directory)
    language.save_pretrained(directory)
    qformer.save_pretrained(directory / QFORMER_TOKENIZER)
    return directory


@lru_cache
def blip2_processor(source: Path) -> Path:
    """The directory made for a model in BLIP-2 format that has no Q-Former tokenizer: its Q-Former
    reads no text, so a tokenizer without words does.
    """
    language = open_tokenizer(source)
    image_processor = open_image_processor(source)
    directory = _living_directory()
    image_processor.save_pretrained(directory)
    language.save_pretrained(directory)
    words = directory / "vocab-of-none.txt"
    words.write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")) + "\n")
    BertTokenizerFast(str(words)).save_pretrained(directory / QFORMER_TOKENIZER)
    words.unlink()
    return directory


def open_image_processor(directory: Path) -> BlipImageProcessor:
    """The image processor in a directory.

    Raises:
        ValueError: when there is none that can be opened.
    """
    try:
        for name in ("preprocessor_config.json", "processor_config.json"):
            if (directory / name).is_file():
                read_json(directory / name, "copy it again")
        opened: BlipImageProcessor = BlipImageProcessor.from_pretrained(
            directory, local_files_only=True
        )
    except (*UNUSABLE, OSError) as error:
        first = str(error).strip().partition("\n")[0][:200]
        raise ValueError(
            f"{directory} has no image processor that can be opened ({first}); a base directory "
            "holds preprocessor_config.json or processor_config.json beside its tokenizers"
        ) from error
    return opened


def language_directory(section: ModelSection) -> Path:
    """The directory of the language model: its own, or that of the second stage.

    Raises:
        ValueError: when there is none.
    """
    assert section.parts is not None
    directory = section.parts.language or section.parts.stage2
    assert directory is not None
    if section.parts.language is None and directory.is_file():
        raise ValueError(
            f"model.parts.stage2 is the file {directory}, which holds no language model: name the "
            "directory of one in model.parts.language"
        )
    found = resolve_directory(directory, section.allow_download)
    model_type = read_model_type(found)
    if section.parts.language is not None and model_type in ("instructblip", "blip-2"):
        raise ValueError(
            f"model.parts.language {found} is a whole {model_type}, not a language model alone: "
            "name the language model's own directory, or the whole in model.base"
        )
    return found


def is_vicuna(section: ModelSection) -> bool:
    """Whether the language model of a base given in parts has to be Vicuna."""
    if section.language_release == "other":
        return False
    config = open_config(language_directory(section))
    return bool(getattr(config, "text_config", config).model_type == "llama")


def language_tokenizer(section: ModelSection) -> PreTrainedTokenizerBase:
    """The language model's tokenizer; Vicuna's with the changes of the released InstructBLIP: a new
    padding token after all others, and `</s>` for beginning, end and unknown
    (`blip2_vicuna_instruct.py`).

    Raises:
        ValueError: when there is none, or a Vicuna's has no `</s>`.
    """
    directory = language_directory(section)
    plain = open_tokenizer(directory)
    if not is_vicuna(section):
        return plain
    if "</s>" not in plain.get_vocab():
        raise ValueError(
            f"{directory}: its tokenizer has no '</s>', so it is not Vicuna's; for another Llama "
            "write model.language_release=other"
        )
    tokenizer = open_tokenizer(directory, **_VICUNA_TOKENS)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    return tokenizer


def qformer_tokenizer(section: ModelSection) -> PreTrainedTokenizerBase:
    """bert-base-uncased's tokenizer with `[DEC]` (`blip2.py`, `init_tokenizer`).

    Raises:
        ValueError: when there is none, or it is another model's.
    """
    assert section.parts is not None
    directory = resolve_directory(section.parts.bert, section.allow_download)
    tokenizer = open_tokenizer(directory)
    if tokenizer.cls_token is None:
        raise ValueError(
            f"model.parts.bert {directory}: its tokenizer has no [CLS], so it is not BERT's; give "
            "the directory of bert-base-uncased"
        )
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer


def _living_directory() -> Path:
    _LIVING.append(tempfile.TemporaryDirectory(prefix="ibtrain-processor-"))
    return Path(_LIVING[-1].name)
