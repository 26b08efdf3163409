import json
import shutil

import pytest
import sentencepiece
from transformers import AutoTokenizer, T5TokenizerFast

from ibtrain.tokenization import InstructionTokenizer, open_tokenizer
from tests.tiny import CORPUS


@pytest.fixture(scope="module")
def tokenizer(tiny_processor) -> InstructionTokenizer:
    return InstructionTokenizer.from_directory(tiny_processor)


@pytest.fixture
def short(tiny_processor) -> InstructionTokenizer:
    return InstructionTokenizer.from_directory(
        tiny_processor, max_instruction_tokens=4, max_answer_tokens=2
    )


def pieces(tokenizer: InstructionTokenizer, ids: tuple[int, ...], part: str) -> list[str]:
    return getattr(tokenizer, part).convert_ids_to_tokens(list(ids))


def test_an_instruction_for_both_parts(tokenizer):
    tokens = tokenizer.instruction("Where is the red square?")
    assert pieces(tokenizer, tokens.language, "language") == [
        "</s>",
        "▁Where",
        "▁is",
        "▁the",
        "▁red",
        "▁square",
        "?",
    ]
    assert pieces(tokenizer, tokens.qformer, "qformer") == [
        "[CLS]",
        "where",
        "is",
        "the",
        "red",
        "square",
        "?",
        "[SEP]",
    ]


def test_an_answer_has_no_begin_and_one_end(tokenizer):
    assert tokenizer.end_id == tokenizer.language.eos_token_id == 2
    ids = tokenizer.answer("top left")
    assert pieces(tokenizer, ids, "language") == ["▁top", "▁left", "</s>"]
    assert tokenizer.answer("") == (2,)


def test_an_instruction_loses_its_beginning(short):
    tokens = short.instruction("Where is the red square?")
    assert pieces(short, tokens.language, "language") == ["</s>", "▁red", "▁square", "?"]
    assert pieces(short, tokens.qformer, "qformer") == ["[CLS]", "square", "?", "[SEP]"]


def test_an_answer_loses_its_end_and_keeps_the_end_token(short):
    assert short.answer("top left red blue") == short.answer("top left")
    assert pieces(short, short.answer("top left red blue"), "language") == [
        "▁top",
        "▁left",
        "</s>",
    ]


def test_an_answer_does_not_depend_on_the_instruction(tokenizer):
    before = tokenizer.answer("red")
    tokenizer.instruction("What color is the circle? red")
    assert tokenizer.answer("red") == before


def test_tokenizers_saved_with_another_side_are_truncated_on_the_left(tiny_processor):
    language = AutoTokenizer.from_pretrained(tiny_processor)
    qformer = AutoTokenizer.from_pretrained(tiny_processor / "qformer_tokenizer")
    language.truncation_side = qformer.truncation_side = "right"
    tokenizer = InstructionTokenizer(language, qformer, max_instruction_tokens=3)
    tokens = tokenizer.instruction("What color is the circle?")
    assert pieces(tokenizer, tokens.language, "language") == ["</s>", "▁circle", "?"]
    assert pieces(tokenizer, tokens.qformer, "qformer") == ["[CLS]", "?", "[SEP]"]


def test_a_tokenizer_without_end_token_is_refused(tiny_processor):
    language = AutoTokenizer.from_pretrained(tiny_processor)
    language.eos_token = None
    with pytest.raises(ValueError, match="has no end token"):
        InstructionTokenizer(language, language)


def test_a_directory_without_tokenizers_is_refused(tiny_processor, tmp_path):
    with pytest.raises(ValueError, match=r"has no tokenizer at .*empty/tokenizer_config\.json"):
        InstructionTokenizer.from_directory(tmp_path / "empty")
    copy = shutil.copytree(tiny_processor, tmp_path / "half")
    shutil.rmtree(copy / "qformer_tokenizer")
    with pytest.raises(ValueError, match=r"no tokenizer at .*half/qformer_tokenizer/tokenizer_con"):
        InstructionTokenizer.from_directory(copy)


@pytest.fixture(scope="module")
def t5(tiny_processor, tmp_path_factory) -> InstructionTokenizer:
    """A T5's tokenizer in the place of the Llama's: it ends what it reads and begins nothing."""
    directory = tmp_path_factory.mktemp("t5")
    (directory / "corpus.txt").write_text(CORPUS)
    (directory / "trained").mkdir()
    sentencepiece.SentencePieceTrainer.train(
        input=str(directory / "corpus.txt"),
        model_prefix=str(directory / "trained" / "spiece"),
        vocab_size=60,
        hard_vocab_limit=False,
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "minloglevel": 2},
    )
    base = directory / "base"
    shutil.copytree(tiny_processor / "qformer_tokenizer", base / "qformer_tokenizer")
    tokenizer = T5TokenizerFast.from_pretrained(directory / "trained", extra_ids=4)
    tokenizer.save_pretrained(base)
    return InstructionTokenizer.from_directory(base, max_instruction_tokens=8, max_answer_tokens=3)


def test_a_t5_reads_an_end_token_after_the_instruction(t5):
    whole = t5.language("red cat", add_special_tokens=False).input_ids
    assert t5.instruction("red cat").language == (*whole, t5.end_id)
    assert t5.end_id == 1


def test_a_t5_keeps_the_end_token_of_a_long_instruction(t5):
    text = "Question: What word is written? Short answer:"
    whole = t5.language(text, add_special_tokens=False).input_ids
    assert len(whole) > 8
    assert t5.instruction(text).language == (*whole[-7:], 1)


def test_a_t5_answer_has_one_end_token(t5):
    whole = t5.language("a red circle at the top left", add_special_tokens=False).input_ids
    assert t5.answer("a red circle at the top left") == (*whole[:3], 1)
    assert t5.answer("") == (1,)


@pytest.mark.parametrize("damaged", ["tokenizer_config.json", "qformer_tokenizer/tokenizer.json"])
def test_a_damaged_tokenizer_is_named(tiny_processor, tmp_path, damaged):
    shutil.copytree(tiny_processor, tmp_path / "base")
    (tmp_path / "base" / damaged).write_text("{oops")
    place = (tmp_path / "base" / damaged).parent
    with pytest.raises(ValueError, match=rf"{place} has no tokenizer that can be opened \(.*again"):
        InstructionTokenizer.from_directory(tmp_path / "base")


def test_code_beside_a_tokenizer_is_never_offered_to_run(tiny_processor, tmp_path, capsys):
    shutil.copytree(tiny_processor, tmp_path / "base")
    file = tmp_path / "base/tokenizer_config.json"
    code = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["code.Mine", None]}}
    file.write_text(json.dumps(json.loads(file.read_text()) | code))
    (tmp_path / "base/code.py").write_text("raise AssertionError('this ran')\n")
    with pytest.raises(ValueError, match="has no tokenizer that can be opened"):
        InstructionTokenizer.from_directory(tmp_path / "base")
    assert "[y/N]" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (  # LLaMA's first files, as in transformers #25036: opened, and no text could be read
            {"bos_token": "", "eos_token": "", "unk_token": ""},
            "bos_token is empty, and no text can be read so; write '<s>' for a Llama's",
        ),
        (
            {"unk_token": {"content": "", "lstrip": False}, "tokenizer_class": "LlamaTokenizer"},
            "unk_token is empty, and no text can be read so; write '<unk>' for a Llama's",
        ),
        (
            {"mask_token": ""},
            "mask_token is empty, and no text can be read so; take the key out",
        ),
        (  # decapoda-research's, as in FastChat #352
            {"tokenizer_class": "LLaMATokenizer"},
            "tokenizer_class is 'LLaMATokenizer', which transformers does not know; write "
            "'LlamaTokenizer'",
        ),
    ],
)
@pytest.mark.parametrize("file", ["tokenizer.model", "tokenizer.json"])
def test_what_early_releases_wrote_is_refused_with_what_to_write(
    tiny_processor, tmp_path, file, settings, said
):
    if not (tiny_processor / file).is_file():  # transformers 5 writes no tokenizer.model
        pytest.skip(f"this release writes no {file}")
    shutil.copy(tiny_processor / file, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError) as refused:
        open_tokenizer(tmp_path)
    assert str(refused.value) == f"{tmp_path}/tokenizer_config.json: {said}"


def test_a_tokenizer_at_which_the_library_panics(tiny_processor, tmp_path):
    """A token that its own post-processor names is gone."""
    shutil.copytree(tiny_processor, tmp_path / "base")
    file = tmp_path / "base/qformer_tokenizer/tokenizer.json"
    file.write_text(file.read_text().replace('"[SEP]": {', '"[SEQ]": {'))
    with pytest.raises(ValueError, match=r"base/qformer_tokenizer has no tokenizer that can be"):
        InstructionTokenizer.from_directory(tmp_path / "base")


def test_special_tokens_as_releases_before_4_34_wrote_them(tiny_processor, tmp_path):
    """As in InternVL's chinese_alpaca_lora_7b, with a path of the machine that wrote it."""

    def token(content: str) -> dict:
        flags = dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
        return {"__type": "AddedToken", "content": content, "normalized": True} | flags

    shutil.copy(tiny_processor / "tokenizer.json", tmp_path)
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": token("</s>"),
        "eos_token": token("</s>"),
        "unk_token": token("</s>"),
        "pad_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1000000000000000019884624838656,
        "sp_model_kwargs": {},
        "special_tokens_map_file": "chinese_alpaca_lora_7b/special_tokens_map.json",
        "tokenizer_class": "LlamaTokenizer",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    opened, usual = open_tokenizer(tmp_path), open_tokenizer(tiny_processor)
    assert (opened.bos_token, opened.eos_token, opened.pad_token) == ("</s>", "</s>", None)
    text = "What color is the circle?"
    assert opened(text).input_ids == usual(text).input_ids
