"""Text to token ids, the same way for training, generation and ranking.

Instruction and answer are tokenized apart and joined, so that an answer's tokens never depend on
the prompt before it. One instruction goes to two tokenizers: the Q-Former's and the language
model's.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import ibtrain.torchvision_mend  # isort: skip
from transformers import AutoTokenizer, PreTrainedTokenizerBase

assert ibtrain.torchvision_mend


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
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory,
            local_files_only=True,
            trust_remote_code=False,
            truncation_side="left",
            **tokens,
        )
    except Exception as error:  # the tokenizers library raises nothing finer
        first = str(error).strip().partition("\n")[0][:200]
        raise ValueError(
            f"{directory} has no tokenizer that can be opened ({first}); copy its files again"
        ) from error
    return tokenizer


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
            raise ValueError("the language tokenizer has no end token (eos): answers cannot end")
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
