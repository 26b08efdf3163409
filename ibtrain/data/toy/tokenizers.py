"""Tokenizers for the toy: built as the released model's are, from the toy's own text.

The language model's is SentencePiece BPE opened by `LlamaTokenizer`, with the changes the released
Vicuna checkpoints were trained with: pad is a new `[PAD]`, and bos, eos and unk are all `</s>`. The
Q-Former's is WordPiece opened by `BertTokenizerFast`, with `[DEC]` as bos and truncation from the
left. `<image>` is added as the processor adds it.

The language tokenizer puts a space before whatever it is given ("red" becomes the one piece
"\u2581red"), so an answer that is tokenized apart and joined to its prompt reads as the next word.
"""

import io
import string
import tempfile
from collections import Counter
from pathlib import Path

import sentencepiece
from transformers import (
    BertTokenizerFast,
    BlipImageProcessor,
    InstructBlipProcessor,
    LlamaTokenizer,
    LlamaTokenizerFast,
)

VOCABULARY_SIZE = 384  # about the least at which every toy word is one piece
MAXIMUM_LENGTH = 512
_IMAGE_TOKEN = "<image>"


def write_processor(
    corpus: Path, directory: Path, *, image_size: int, num_query_tokens: int
) -> None:
    """Trains both tokenizers on `corpus` and saves an `InstructBlipProcessor` in `directory`.

    Args:
        corpus: plain text, one sentence a line.
        directory: created; `InstructBlipProcessor.from_pretrained` opens it.
        image_size: pixels, both sides; images are squashed to it (bicubic, CLIP mean and std).
        num_query_tokens: how many `<image>` tokens the processor puts before a prompt.
    """
    with tempfile.TemporaryDirectory() as scratch:
        language = _language_tokenizer(corpus, Path(scratch))
        qformer = _qformer_tokenizer(corpus, Path(scratch))
        processor = InstructBlipProcessor(
            BlipImageProcessor(size={"height": image_size, "width": image_size}, do_resize=True),
            language,
            qformer,
            num_query_tokens=num_query_tokens,
        )
        processor.save_pretrained(directory)


def _language_tokenizer(corpus: Path, scratch: Path) -> LlamaTokenizerFast:
    model = io.BytesIO()  # a trained model keeps the names of its files, which would differ by run
    text = corpus.read_text(encoding="utf-8")
    required = string.ascii_letters + string.digits + string.punctuation
    # SentencePiece 0.2.2 aborts the process at a required character that the text lacks.
    lacking = sorted(set(required) - set(text))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*text.splitlines(), *lacking]),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY_SIZE,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        required_chars=required,
        byte_fallback=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    trained = scratch / "sentencepiece"
    trained.mkdir()
    (trained / "tokenizer.model").write_bytes(model.getvalue())
    # By its directory: transformers 5's constructor takes pieces and merges, not a file. Its class
    # is said there, or transformers 4.57 guesses another and warns.
    (trained / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    tokenizer = LlamaTokenizer.from_pretrained(
        trained,
        add_bos_token=True,
        truncation_side="left",
        legacy=True,
        bos_token="</s>",
        eos_token="</s>",
        unk_token="</s>",
        model_max_length=MAXIMUM_LENGTH,
    )
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_tokens([_IMAGE_TOKEN], special_tokens=True)
    tokenizer.save_pretrained(scratch / "language")
    return LlamaTokenizerFast.from_pretrained(scratch / "language")


def _qformer_tokenizer(corpus: Path, scratch: Path) -> BertTokenizerFast:
    """Every word of the corpus is one token; others fall apart into characters."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = string.ascii_lowercase + string.digits
    characters = [*string.punctuation, *letters, *(f"##{character}" for character in letters)]
    splitter = BertTokenizerFast(_write_vocabulary(scratch, specials + characters))
    words: Counter[str] = Counter()
    with corpus.open(encoding="utf-8") as lines:
        for line in lines:
            text = splitter.backend_tokenizer.normalizer.normalize_str(line)
            words.update(
                w for w, _ in splitter.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
            )
    ordered = sorted(words, key=lambda word: (-words[word], word))
    pieces = dict.fromkeys([*specials, *characters, *ordered])
    tokenizer = BertTokenizerFast(
        _write_vocabulary(scratch, list(pieces)),
        truncation_side="left",
        model_max_length=MAXIMUM_LENGTH,
    )
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer


def _write_vocabulary(scratch: Path, pieces: list[str]) -> str:
    path = scratch / "vocab.txt"
    path.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return str(path)
