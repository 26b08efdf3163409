"""Text to token ids, the same way for training, generation and ranking.

Instruction and answer are tokenized apart and joined, so that an answer's tokens never depend on
the prompt before it. One instruction goes to two tokenizers: the Q-Former's and the language
model's.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import ibtrain.torchvision_mend  # isort: skip
import transformers
from transformers import (
    AutoTokenizer,
    LlamaTokenizerFast,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from ibtrain.files import FileError, check_not_pointer, read_json

assert ibtrain.torchvision_mend


_IS_FIFTH = int(transformers.__version__.partition(".")[0]) >= 5
_WHOLE = "tokenizer.json"
_SUFFIXES = (".json", ".model", ".txt")
_FILES_NAMED = (
    "vocab_file",
    "merges_file",
    "tokenizer_file",
    "spm_file",
    "gguf_file",
    "chat_template_file",
)
_SPECIAL = tuple(f"{name}_token" for name in ["bos", "cls", "eos", "mask", "pad", "sep", "unk"])
# Of a tokenizer_config.json, beside its special tokens, what has a meaning.
_SETTINGS = (
    "model_max_length",
    "model_input_names",
    "padding_side",
    "clean_up_tokenization_spaces",
    "split_special_tokens",
    "chat_template",
)


@dataclass(frozen=True)
class InstructionTokens:
    """An instruction as the two parts of the model read it."""

    qformer: tuple[int, ...]
    language: tuple[int, ...]


def open_tokenizer(directory: Path, **tokens: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a directory, which cuts on the left; code in the directory is never run.

    Args:
        directory: of a downloaded model.
        tokens: special tokens that it gets to have ("eos_token" and the like).

    Raises:
        ValueError: when there is none that can be opened.
    """
    if not directory.is_dir():
        raise ValueError(f"{directory} is not there; give the directory of a downloaded model")
    settings = _settings(directory)
    try:
        tokenizer: PreTrainedTokenizerBase
        if _is_read_whole(directory, settings):
            tokenizer = _read_whole(directory, settings, tokens)
        else:
            tokenizer = AutoTokenizer.from_pretrained(
                directory,
                local_files_only=True,
                trust_remote_code=False,
                truncation_side="left",
                **tokens,
            )
        # transformers opens some that then fail at any text, and returns False for others.
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ValueError("transformers makes none of its files")
        tokenizer("a")
    except BaseException as error:  # the tokenizers library raises nothing finer, and panics
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        first = str(error).strip().partition("\n")[0][:200]
        raise ValueError(
            f"{directory} has no tokenizer that can be opened ({first}); copy its files again"
        ) from error
    return tokenizer


def _settings(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json, and whether its files are there and lie in the directory.

    Raises:
        ValueError: when a file is a pointer of Git LFS, or is named outside the directory.
    """
    for path in sorted(directory.iterdir()):
        if path.suffix in _SUFFIXES and path.is_file():
            check_not_pointer(path)
    file = directory / "tokenizer_config.json"
    if not file.is_file():
        return {}
    try:
        settings = read_json(file, "copy its files again")
        if (directory / _WHOLE).is_file():  # a damaged one some releases pass over without a word
            read_json(directory / _WHOLE, "copy its files again")
    except FileError as error:
        raise ValueError(f"{directory} has no tokenizer that can be opened ({error})") from error
    _check_words(file, settings)
    for key in _FILES_NAMED:
        named = settings.get(key)
        # transformers 4.57 opens what stands here, wherever it lies.
        if named is not None and not (isinstance(named, str) and Path(named).name == named):
            raise ValueError(
                f"{file}: {key} is {str(named)[:80]!r}, and files are read from the directory "
                "alone; take the key out"
            )
    return settings


def _check_words(file: Path, settings: dict[str, Any]) -> None:
    """Refuses what early releases wrote for a Llama, which no later one can use.

    Raises:
        ValueError: naming the key, and what to write instead.
    """
    for key in _SPECIAL:
        if _token(settings.get(key)) == "":
            usual = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}.get(key)
            remedy = f"write {usual!r} for a Llama's" if usual else "take the key out"
            raise ValueError(f"{file}: {key} is empty, and no text can be read so; {remedy}")
    named = settings.get("tokenizer_class")
    if named == "LLaMATokenizer":  # the class's name in the first weeks
        raise ValueError(
            f"{file}: tokenizer_class is {named!r}, which transformers does not know; write "
            "'LlamaTokenizer'"
        )


def _is_of_release_5(settings: dict[str, Any]) -> bool:
    """Whether transformers 5 wrote a tokenizer, in words that 4.57 does not know."""
    return (
        "backend" in settings
        or settings.get("tokenizer_class") == "TokenizersBackend"
        or isinstance(settings.get("extra_special_tokens"), list)
    )


def _is_read_whole(directory: Path, settings: dict[str, Any]) -> bool:
    """Whether a tokenizer is opened from tokenizer.json as that stands: where the installed release
    cannot, or would make another of it. transformers 5 makes a Llama's anew, which then drops a
    space at the beginning and any character that it has no piece for.
    """
    if not (directory / _WHOLE).is_file() or "auto_map" in settings:
        return False
    if _is_of_release_5(settings):
        return True
    if "added_tokens_decoder" not in settings:  # before 4.34: the class knows the special tokens
        return False
    made_anew = settings.get("add_prefix_space") is not None and not any(directory.glob("*.model"))
    return _IS_FIFTH or made_anew


def _read_whole(
    directory: Path, settings: dict[str, Any], tokens: dict[str, str]
) -> PreTrainedTokenizerBase:
    """The tokenizer that tokenizer.json is, with what the settings say of it in the words of every
    release.
    """
    file = directory / _WHOLE
    class_name = str(settings.get("tokenizer_class")).removesuffix("Fast")
    named = getattr(transformers, f"{class_name}Fast", None)
    kept = {key: settings[key] for key in _SETTINGS if settings.get(key) is not None}
    if "model_input_names" not in kept and named is not None:
        kept["model_input_names"] = named.model_input_names
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens")
    if isinstance(extra, list):
        key = "extra_special_tokens" if _IS_FIFTH else "additional_special_tokens"
        kept[key] = [_token(one) for one in extra]
    more = {
        key: _token(value)
        for key, value in settings.items()
        if key in _SPECIAL and value is not None
    }
    kind: Any = PreTrainedTokenizerFast
    if class_name == "LlamaTokenizer":
        ends = _ends(file)
        if not _is_of_release_5(settings):  # there the settings count, and have these defaults
            ends = settings.get("add_bos_token", True), settings.get("add_eos_token", False)
        kept |= {"add_bos_token": ends[0], "add_eos_token": ends[1]}
        if not _IS_FIFTH:  # where this class alone puts them anew, as another beginning wants
            kind, kept["legacy"] = LlamaTokenizerFast, True
    tokenizer: PreTrainedTokenizerBase = kind(
        tokenizer_file=str(file),
        name_or_path=str(directory),
        truncation_side="left",
        **{**kept, **more, **tokens},
    )
    return tokenizer


def _token(value: Any) -> Any:
    """A special token, which may be written with its settings."""
    return value.get("content") if isinstance(value, dict) else value


def _ends(file: Path) -> tuple[bool, bool]:
    """Whether tokenizer.json puts a special token before a text, and one after it."""
    processor = json.loads(file.read_text(encoding="utf-8")).get("post_processor") or {}
    for step in processor.get("processors", [processor]):
        if step.get("type") == "TemplateProcessing":
            special = ["SpecialToken" in piece for piece in step["single"]]
            return special[0], special[-1]
    return False, False


class InstructionTokenizer:
    """Both tokenizers of a base, with LAVIS's limits and truncation sides.

    Args:
        language: the language model's tokenizer; an instruction gets its BOS, if it has one.
        qformer: the Q-Former's; an instruction gets [CLS] and [SEP].
        max_instruction_tokens: longer instructions lose their *beginning* (LAVIS `max_txt_len`).
        max_answer_tokens: longer answers lose their end, before the end token is added.

    Raises:
        ValueError: when the language tokenizer has no end token.
    """

    def __init__(
        self,
        language: PreTrainedTokenizerBase,
        qformer: PreTrainedTokenizerBase,
        max_instruction_tokens: int = 128,
        max_answer_tokens: int = 256,
    ) -> None:
        if language.eos_token_id is None:
            where = f" of {language.name_or_path}" if language.name_or_path else ""
            raise ValueError(
                f"the language tokenizer{where} has no end token (eos), so answers cannot end; "
                "name it in tokenizer_config.json"
            )
        self.language = language
        self.qformer = qformer
        self.end_id: int = language.eos_token_id
        self.max_instruction_tokens = max_instruction_tokens
        self.max_answer_tokens = max_answer_tokens
        language.truncation_side = "left"
        qformer.truncation_side = "left"
        self._instruction = lru_cache(maxsize=65536)(self._tokenize_instruction)
        self._answer = lru_cache(maxsize=65536)(self._tokenize_answer)

    @classmethod
    def from_directory(
        cls, directory: Path, max_instruction_tokens: int = 128, max_answer_tokens: int = 256
    ) -> "InstructionTokenizer":
        """The tokenizers of a directory in transformers' InstructBLIP layout.

        Raises:
            ValueError: when the directory lacks one of the two tokenizers, or one cannot be opened.
        """
        qformer_directory = directory / "qformer_tokenizer"
        for part, needed in (
            (directory, "tokenizer_config.json"),
            (qformer_directory, "tokenizer_config.json"),
        ):
            if not (part / needed).is_file():
                raise ValueError(
                    f"{directory} has no tokenizer at {part / needed}: a base directory holds the "
                    "language tokenizer beside config.json and the Q-Former's in qformer_tokenizer/"
                )
        return cls(
            open_tokenizer(directory),
            open_tokenizer(qformer_directory),
            max_instruction_tokens,
            max_answer_tokens,
        )

    def instruction(self, text: str) -> InstructionTokens:
        """Token ids of an instruction for both parts, truncated on the left."""
        return self._instruction(text)

    def answer(self, text: str) -> tuple[int, ...]:
        """Token ids of an answer without BOS, truncated on the right, and the end token."""
        return self._answer(text)

    def _tokenize_instruction(self, text: str) -> InstructionTokens:
        limits = {"truncation": True, "max_length": self.max_instruction_tokens}
        return InstructionTokens(
            qformer=tuple(self.qformer(text, **limits).input_ids),
            language=tuple(self.language(text, **limits).input_ids),
        )

    def _tokenize_answer(self, text: str) -> tuple[int, ...]:
        ids = self.language(text, add_special_tokens=False).input_ids
        return (*ids[: self.max_answer_tokens], self.end_id)
