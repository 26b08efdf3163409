import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ibtrain.evaluation.candidates import token_trie
from ibtrain.evaluation.generation import DecodingSettings, generate
from ibtrain.pretrained.opening import open_model
from tests.evaluation.pictures import noise
from tests.evaluation.test_ranking import PROMPTS, candidates
from tests.tiny import write_tiny_base

IMAGES = [[noise(seed)] for seed in range(3)]
GREEDY = DecodingSettings(max_new_tokens=8)
BEAMS = DecodingSettings(beams=5, max_new_tokens=8, min_new_tokens=3, length_penalty=-1.0)
SAMPLED = DecodingSettings(max_new_tokens=8, sample=True, temperature=3.0, repetition_penalty=1.5)


@pytest.fixture(scope="module", params=["llama", "t5"])
def opened(request, tmp_path_factory, tiny_processor):
    directory = tmp_path_factory.mktemp("base") / request.param
    return open_model(write_tiny_base(directory, tiny_processor, language=request.param))


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.lists(st.sampled_from(candidates()), min_size=1, max_size=8, unique=True),
        min_size=3,
        max_size=3,
    ),
    st.sampled_from([GREEDY, BEAMS, SAMPLED]),
)
def test_only_given_answers_come_out(opened, allowed, how):
    answers = generate(opened, IMAGES, PROMPTS, how, allowed)
    for answer, own in zip(answers, allowed, strict=True):
        assert answer in own


def test_a_vocabulary_that_contains_the_answer_changes_nothing(opened, monkeypatch):
    """Whatever token ends an answer: here the fourth of a free one, so that there is an end. (With
    several beams an allowed answer may win that the free search had dropped on its way.)"""
    tokenizer, seen = opened.tokenizer, []
    decode, tokenize = tokenizer.language.batch_decode, tokenizer.answer
    keep = lambda ids, **options: seen.append(ids[0].tolist()) or decode(ids, **options)  # noqa: E731
    monkeypatch.setattr(tokenizer.language, "batch_decode", keep)
    start = 1 if opened.model.config.text_config.is_encoder_decoder else 0
    compared, usual_end = 0, tokenizer.end_id
    for seed in range(8):
        asked = ([[noise(seed)]], [PROMPTS[seed % 3]])
        monkeypatch.setattr(tokenizer, "end_id", usual_end)
        generate(opened, *asked, GREEDY)
        monkeypatch.setattr(tokenizer, "end_id", seen[-1][start:][:4][-1])
        (free,) = generate(opened, *asked, GREEDY)
        ids = tuple(seen[-1][start:])
        own = ids[: ids.index(tokenizer.end_id)] if tokenizer.end_id in ids else ()
        if not own:
            continue
        named = {"the free answer": (*own, tokenizer.end_id)}
        end = tokenizer.end_id
        monkeypatch.setattr(
            tokenizer,
            "answer",
            lambda text, named=named, end=end: named.get(text) or (*tokenize(text)[:-1], end),
        )
        token_trie.cache_clear()
        others = [text for text in candidates() if end not in tokenize(text)[:-1]][:12]
        answers = generate(opened, *asked, GREEDY, [[*others, "the free answer"]])
        monkeypatch.setattr(tokenizer, "answer", tokenize)
        assert answers == ["the free answer"], (seed, free)
        compared += 1
    token_trie.cache_clear()
    assert compared >= 5


def test_one_answer_is_all_that_is_left(opened):
    for how in (GREEDY, BEAMS):
        assert generate(opened, IMAGES[:1], PROMPTS[:1], how, [["red circle"]]) == ["red circle"]


def test_mistakes(opened):
    with pytest.raises(ValueError, match="the list of candidates is empty"):
        generate(opened, IMAGES[:1], PROMPTS[:1], GREEDY, [[]])
    with pytest.raises(ValueError, match="the candidate '' has no tokens"):
        generate(opened, IMAGES[:1], PROMPTS[:1], GREEDY, [[""]])
