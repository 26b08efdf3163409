import io
import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers import InstructBlipForConditionalGeneration, InstructBlipProcessor

from ibtrain.evaluation.generation import ASKING, DecodingSettings, generate, pixels_of
from ibtrain.pretrained.opening import OpenedModel, open_model
from ibtrain.tokenization import InstructionTokens
from tests.evaluation.pictures import encoded, noise
from tests.tiny import IMAGE_SIZE, write_tiny_base

PROMPTS = [
    "What color is the circle?",
    "Where?",
    "Question: What word is written? Short answer:",
    "Is there a yellow triangle?",
    "How many objects are there?",
]
GREEDY = DecodingSettings(max_new_tokens=8)
BEAMS = DecodingSettings(beams=5, max_new_tokens=8, min_new_tokens=2)
SHORT_ASKING = replace(ASKING, max_new_tokens=30)


@pytest.fixture(scope="module", params=["llama", "t5"])
def base(request, tmp_path_factory, tiny_processor):
    directory = tmp_path_factory.mktemp("base") / request.param
    return write_tiny_base(directory, tiny_processor, language=request.param)


@pytest.fixture(scope="module")
def opened(base) -> OpenedModel:
    return open_model(base)


@pytest.mark.parametrize(
    "settings", [GREEDY, BEAMS, SHORT_ASKING], ids=["greedy", "beams", "asking"]
)
def test_an_answer_does_not_depend_on_those_beside_it(opened, settings):
    images = [[noise(index)] for index in range(len(PROMPTS))]
    images[1] = []  # text alone
    images[3] = [noise(7), noise(8), noise(9)]  # a video's frames
    together = generate(opened, images, PROMPTS, settings)
    alone = [
        generate(opened, [own], [prompt], settings)[0]
        for own, prompt in zip(images, PROMPTS, strict=True)
    ]
    assert together == alone
    assert len(set(together)) > 2  # or the comparison would say nothing


@pytest.mark.parametrize("settings", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_answers_are_those_of_transformers(base, opened, settings):
    model = InstructBlipForConditionalGeneration.from_pretrained(base).eval()
    processor = InstructBlipProcessor.from_pretrained(base)
    for index, prompt in enumerate(PROMPTS):
        inputs = processor(images=noise(index), text=prompt, return_tensors="pt")
        inputs["pixel_values"] = pixels_of(noise(index), IMAGE_SIZE)[None]
        ids = model.generate(
            **inputs,
            num_beams=settings.beams,
            max_new_tokens=settings.max_new_tokens,
            min_new_tokens=settings.min_new_tokens,
            do_sample=False,
            eos_token_id=opened.tokenizer.end_id,
            pad_token_id=opened.tokenizer.language.pad_token_id,
        )
        ids = ids[:, inputs["input_ids"].shape[1] :] if _holds_prompt(ids, inputs) else ids
        theirs = processor.tokenizer.decode(ids[0], skip_special_tokens=True).strip()
        assert generate(opened, [[noise(index)]], [prompt], settings) == [theirs]


def _holds_prompt(ids, inputs) -> bool:
    prompt = inputs["input_ids"]
    return ids.shape[1] > prompt.shape[1] and torch.equal(ids[:, : prompt.shape[1]], prompt)


def test_image_and_instruction_matter(opened):
    answers = generate(opened, [[noise(0)], [noise(1)]], [PROMPTS[0]] * 2, GREEDY)
    assert answers[0] != answers[1]
    frames = [[noise(0), noise(1)], [noise(1), noise(0)]]
    assert len(set(generate(opened, frames, [PROMPTS[0]] * 2, GREEDY))) == 2


def test_sampling_is_a_function_of_the_seed(opened):
    settings = DecodingSettings(max_new_tokens=8, sample=True, temperature=2.0, seed=1)
    images = [[noise(0)], [noise(1)]]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = generate(opened, images, PROMPTS[:2], settings)
    assert torch.equal(state, torch.get_rng_state())
    assert generate(opened, images[::-1], PROMPTS[:2][::-1], settings) == first[::-1]
    other = DecodingSettings(max_new_tokens=8, sample=True, temperature=2.0, seed=2)
    assert generate(opened, images, PROMPTS[:2], other) != first


def test_lengths_are_kept(opened, monkeypatch):
    decode, seen = opened.tokenizer.language.batch_decode, []

    def record(ids, **options):
        seen.extend(ids.tolist())
        return decode(ids, **options)

    monkeypatch.setattr(opened.tokenizer.language, "batch_decode", record)
    start = 1 if opened.model.config.text_config.is_encoder_decoder else 0
    for least, most in ((1, 1), (6, 6), (3, 9)):
        settings = DecodingSettings(max_new_tokens=most, min_new_tokens=least)
        generate(opened, [[noise(0)]], ["Where?"], settings)
        (ids,) = seen
        assert least <= len(ids) - start <= most
        assert opened.tokenizer.end_id not in ids[start : start + least]
        seen.clear()


def test_what_a_base_says_of_decoding_is_not_used(base, opened, tmp_path):
    insistent = tmp_path / "insistent"
    shutil.copytree(base, insistent)
    config = json.loads((insistent / "config.json").read_text())
    config["text_config"] |= {"repetition_penalty": 5.0, "num_beams": 3, "no_repeat_ngram_size": 1}
    (insistent / "config.json").write_text(json.dumps(config))
    expected = generate(opened, [[noise(0)]], PROMPTS[:1], GREEDY)
    assert generate(open_model(insistent), [[noise(0)]], PROMPTS[:1], GREEDY) == expected


def test_pixels():
    image = noise(3, size=(40, 24))
    assert torch.equal(pixels_of(encoded(image), 16), pixels_of(image, 16))
    assert pixels_of(image, 16).shape == (3, 16, 16)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    upright = pixels_of(image.transpose(Image.Transpose.ROTATE_270), 16)
    assert torch.equal(pixels_of(buffer.getvalue(), 16), upright)
    with Image.open(io.BytesIO(buffer.getvalue())) as rotated:
        assert torch.equal(pixels_of(rotated, 16), upright)
    with pytest.raises(ValueError, match="not a readable image"):
        pixels_of(b"GIF89a and so on", 16)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beams": 0}, "beams is 0"),
        ({"max_new_tokens": 0, "min_new_tokens": 0}, "max_new_tokens is 0"),
        ({"min_new_tokens": 31}, r"from 0 to max_new_tokens \(30\)"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty is inf"),
        ({"length_penalty": float("nan")}, "length_penalty is nan"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"temperature": 1e-300}, "temperature is 1e-300; it must be at least 1e-06"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
    ],
)
def test_settings_that_make_no_sense(values, message):
    with pytest.raises(ValueError, match=message):
        DecodingSettings(**values)


def test_an_empty_prompt_may_have_no_token(opened, monkeypatch):
    """Not every Llama's tokenizer begins with a token of its own."""
    nothing = InstructionTokens(qformer=(2, 3), language=())
    monkeypatch.setattr(opened.tokenizer, "instruction", lambda text: nothing)
    alone = generate(opened, [[noise(0)]], [""], GREEDY)
    assert generate(opened, [[noise(0)], [noise(0), noise(1)]], ["", ""], GREEDY)[:1] == alone
    with pytest.raises(ValueError, match="an empty prompt without an image"):
        generate(opened, [[noise(0)], []], ["", ""], GREEDY)


def test_requests_that_make_no_sense(opened):
    with pytest.raises(ValueError, match="2 prompts come with 1 lists"):
        generate(opened, [[noise(0)]], PROMPTS[:2], GREEDY)
    assert generate(opened, [], [], GREEDY) == []
