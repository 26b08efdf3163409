"""An export's configuration and tokenizers in the words of all releases of transformers.

What 4.57 and 5 name otherwise is written under both names, or in the form that both read as the
same; neither would say a word of what it does not know.
"""

import json
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ibtrain.model.t5 import ties_embeddings
from ibtrain.pretrained.processor import QFORMER_TOKENIZER
from ibtrain.pretrained.releases import rope_in_all_words, rope_of

_SETTINGS = "tokenizer_config.json"
_IMAGES, _PROCESSOR = "preprocessor_config.json", "processor_config.json"
_OF_RELEASE_5 = ("backend", "is_local", "local_files_only")


def config_in_all_words(directory: Path, text: PretrainedConfig) -> None:
    """Rewrites config.json.

    Args:
        directory: of the export.
        text: the language model's configuration.
    """
    file = directory / "config.json"
    config = _read(file)
    section = config["text_config"]
    if text.model_type == "llama":
        section |= rope_in_all_words(rope_of(text))
    else:
        # The fifth calls every T5 tied, which the fourth takes at its word.
        section["tie_word_embeddings"] = config["tie_word_embeddings"] = ties_embeddings(text)
    _write(file, config)


def processor_in_all_words(
    directory: Path, language: PreTrainedTokenizerBase, qformer: PreTrainedTokenizerBase
) -> None:
    """Rewrites the tokenizers' and the image processor's settings.

    Args:
        directory: of the export.
        language: the language model's tokenizer, as it was saved to the directory.
        qformer: the Q-Former's, as it was saved below it.
    """
    _tokenizer_in_all_words(directory, language)
    _tokenizer_in_all_words(directory / QFORMER_TOKENIZER, qformer)
    processor = _read(directory / _PROCESSOR)
    images = processor.pop("image_processor", None)
    if images is not None:  # as the fifth keeps it, and the fourth does not look for it
        name = processor.get("processor_class")
        _write(directory / _IMAGES, images | ({"processor_class": name} if name else {}))
        _write(directory / _PROCESSOR, processor)


def _tokenizer_in_all_words(directory: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """tokenizer.json is the tokenizer: by a class of its own the fifth would make a Llama's anew,
    with other tokens for some texts, and the fourth look for a file that the fifth does not write.
    """
    if not (directory / "tokenizer.json").is_file():
        return
    settings = _read(directory / _SETTINGS)
    for key in _OF_RELEASE_5:
        settings.pop(key, None)
    extra = settings.get("extra_special_tokens")
    if isinstance(extra, list):
        del settings["extra_special_tokens"]
        settings["additional_special_tokens"] = extra
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings["model_input_names"] = list(tokenizer.model_input_names)
    _write(directory / _SETTINGS, settings)


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _write(file: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")
