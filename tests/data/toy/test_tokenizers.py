from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import BertTokenizerFast, InstructBlipProcessor

from ibtrain.data.toy.world import COLORS, SHAPES, WORDS

TOY_WORDS = [*COLORS, *SHAPES, *WORDS, *"0123", "top", "bottom", "left", "right"]


@pytest.fixture(scope="module")
def processor(toy: Path) -> InstructBlipProcessor:
    return InstructBlipProcessor.from_pretrained(toy / "processor")


def test_the_processor_opens_and_gives_what_the_model_takes(processor: InstructBlipProcessor):
    assert isinstance(processor.qformer_tokenizer, BertTokenizerFast)
    prompt = "Question: What color is the circle? Short answer:"
    given = processor(images=Image.new("RGB", (90, 60)), text=prompt, return_tensors="pt")
    assert given.pixel_values.shape == (1, 3, 48, 48)
    image_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert (given.input_ids[0, :4] == image_id).all() and given.input_ids[0, 4] == 2
    assert given.input_ids.dtype == torch.int64


def test_special_tokens_are_the_released_models(processor: InstructBlipProcessor):
    language, qformer = processor.tokenizer, processor.qformer_tokenizer
    assert language.convert_ids_to_tokens([0, 1, 2]) == ["<unk>", "<s>", "</s>"]
    assert language.bos_token == language.eos_token == language.unk_token == "</s>"
    assert (language.pad_token, language.pad_token_id) == ("[PAD]", language.vocab_size)
    assert language.bos_token_id == 2 and language.truncation_side == "left"
    assert qformer.bos_token == "[DEC]" and qformer.bos_token_id == len(qformer) - 1
    assert qformer.pad_token_id == 0 and qformer.truncation_side == "left"


def test_toy_words_are_single_tokens(processor: InstructBlipProcessor):
    for word in TOY_WORDS:
        assert len(processor.tokenizer.tokenize(word)) == 1, word
        assert len(processor.qformer_tokenizer.tokenize(word)) == 1, word


def test_prompt_and_answer_join_as_text(processor: InstructBlipProcessor):
    language = processor.tokenizer
    prompt = language("Where is it? Short answer:").input_ids
    answer = language("top left", add_special_tokens=False).input_ids
    assert answer == language("Short answer: top left").input_ids[-2:]
    text = language.decode([*prompt, *answer, 2], skip_special_tokens=True)
    assert text == "Where is it? Short answer: top left"


def test_any_ascii_text_survives(processor: InstructBlipProcessor):
    text = 'Zebra #42: {"q": [~/x|y]}; 100% @home!'
    ids = processor.tokenizer(text).input_ids
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == text
