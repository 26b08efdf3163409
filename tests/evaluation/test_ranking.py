import functools
import json
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import InstructBlipForConditionalGeneration

from ibtrain.cli import main
from ibtrain.evaluation.candidates import candidate_tokens
from ibtrain.evaluation.generation import pixels_of
from ibtrain.evaluation.ranking import (
    RankingSettings,
    best_first,
    labelled,
    log_probabilities,
    rank,
)
from ibtrain.evaluation.trie import Trie
from ibtrain.pretrained.opening import open_model
from tests.evaluation.pictures import noise
from tests.tiny import IMAGE_SIZE, QUERY_TOKENS, write_tiny_base

PROMPTS = ("Where is the white cross? A long question, as questions go", "What color?", "Where?")
WORDS = "red blue green yellow circle square cross triangle top left bottom right 2 0 yes no"


def candidates() -> list[str]:
    """One token, sixty and more, and each the beginning of the next."""
    source = random.Random(0)
    long = " ".join(source.choice(WORDS.split()) for _ in range(60))
    made = ["red", "r", "red circle", "red circle at", "red circle at the top left", long]
    made += [long[:40], long + " red", "blue", "blue circle", "yes", "no"]
    made += [" ".join(source.choices(WORDS.split(), k=source.randint(1, 4))) for _ in range(30)]
    return list(dict.fromkeys(made))


@pytest.fixture(scope="module", params=["llama", "t5"])
def base(request, tmp_path_factory, tiny_processor):
    directory = tmp_path_factory.mktemp("base") / request.param
    return write_tiny_base(directory, tiny_processor, language=request.param, language_key_heads=2)


@pytest.fixture(scope="module")
def opened(base):
    return open_model(base)


@pytest.fixture(scope="module")
def brute_force(base, opened):
    """Each candidate alone through transformers' model, fp32."""
    twin = InstructBlipForConditionalGeneration.from_pretrained(base).float().eval()
    visual = [twin.config.image_token_index] * QUERY_TOKENS

    @functools.cache
    @torch.inference_mode()
    def score(seed: int, prompt: str, text: str) -> float:
        tokens = opened.tokenizer.instruction(prompt)
        answer = torch.tensor(opened.tokenizer.answer(text))
        prompt_ids = [*visual, *tokens.language]
        decodes = twin.config.text_config.is_encoder_decoder
        ids = torch.tensor([prompt_ids if decodes else [*prompt_ids, *answer.tolist()]])
        logits = twin(
            pixel_values=pixels_of(noise(seed), IMAGE_SIZE)[None],
            qformer_input_ids=torch.tensor([tokens.qformer]),
            qformer_attention_mask=torch.ones(1, len(tokens.qformer), dtype=torch.long),
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **({"labels": answer[None]} if decodes else {}),
        ).logits[0]
        if not decodes:
            logits = logits[len(prompt_ids) - 1 : -1]
        return float(logits.log_softmax(-1).gather(-1, answer[:, None]).sum())

    return score


@pytest.mark.parametrize("piece", [1, 7, 64, 10_000])
def test_scores_are_those_of_each_candidate_alone(opened, brute_force, piece):
    lists = [candidates(), candidates()[:3], candidates()[::-1]]
    assert max(len(candidate_tokens(opened.tokenizer, text)) for text in lists[0]) >= 60
    assert min(len(candidate_tokens(opened.tokenizer, text)) for text in lists[0]) == 1
    images = [[noise(seed)] for seed in range(3)]
    ranked = rank(opened, images, PROMPTS, lists, RankingSettings(piece=piece))
    for seed, (prompt, texts, scored) in enumerate(zip(PROMPTS, lists, ranked, strict=True)):
        assert [one.text for one in scored] == texts
        for one in scored:
            expected = brute_force(seed, prompt, one.text)
            assert one.score == one.logprob == pytest.approx(expected, abs=1e-4)
    wide = [one.logprob for one in ranked[0]]
    assert max(wide) - min(wide) > 10  # or the comparison would say little


def test_prompts_of_no_image_and_of_several(opened):
    images = [[], [noise(1), noise(2)], [noise(3)]]
    lists = [candidates()[:9]] * 3
    together = rank(opened, images, PROMPTS, lists)
    for index in range(3):
        (alone,) = rank(opened, [images[index]], [PROMPTS[index]], [lists[index]])
        for one, other in zip(together[index], alone, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_a_prompt_of_one_row(opened, monkeypatch):
    """Then there is nothing to keep of it."""
    whole = rank(opened, [[]], ["a"], [["red", "blue"]])
    kind = type(opened.tokenizer.instruction("a"))
    monkeypatch.setattr(opened.tokenizer, "instruction", lambda text: kind((2, 3), (5,)))
    short = rank(opened, [[]], ["a"], [["red", "blue"]], RankingSettings(piece=1))
    again = rank(opened, [[]], ["a"], [["red", "blue"]])
    for one, other in zip(short[0], again[0], strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
    assert short[0] != whole[0]


def test_lengths(opened):
    texts = ["red", "red circle at the top left"]
    plain, tokens, characters = (
        rank(opened, [[noise(0)]], [PROMPTS[0]], [texts], RankingSettings(length=length))[0]
        for length in ("sum", "tokens", "characters")
    )
    for index, text in enumerate(texts):
        count = len(candidate_tokens(opened.tokenizer, text)) + 1
        assert tokens[index].score == pytest.approx(plain[index].score / count)
        assert characters[index].score == pytest.approx(plain[index].score / len(text))
        assert tokens[index].logprob == plain[index].logprob


def test_priors_are_of_no_image_and_of_no_question(opened):
    texts = ["red", "blue"]
    scored = {
        prior: rank(opened, [[noise(0)]], ["Where?"], [texts], RankingSettings(prior=prior))[0]
        for prior in ("none", "image", "prompt")
    }
    free = rank(opened, [[noise(0)]], ["N/A"], [texts])[0]
    for index in range(2):
        difference = scored["none"][index].score - scored["prompt"][index].score
        assert difference == pytest.approx(free[index].logprob, abs=1e-4)
    # With an image that is blank already nothing is left.
    blank = pixels_image(opened)
    left = rank(opened, [[blank]], ["Where?"], [texts], RankingSettings(prior="image"))[0]
    assert [one.score for one in left] == pytest.approx([0.0, 0.0], abs=1e-4)
    assert abs(scored["image"][0].score) > 1e-3


def pixels_image(opened):
    from PIL import Image

    blank = Image.new("RGB", (opened.image_size,) * 2, (123, 117, 104))
    assert pixels_of(blank, opened.image_size).abs().max() < 0.01
    return blank


def test_a_label_has_the_probability_of_all_its_texts(opened):
    sets = {"yes": ["yes", "true", "yes"], "no": ["no"]}
    (labels,) = rank(opened, [[noise(0)]], ["Is it?"], [sets])
    (texts,) = rank(opened, [[noise(0)]], ["Is it?"], [["yes", "true", "no"]])
    of = {one.text: torch.tensor(one.logprob) for one in texts}
    assert [one.text for one in labels] == ["yes", "no"]
    assert labels[0].logprob == pytest.approx(float(torch.logaddexp(of["yes"], of["true"])))
    assert labels[1].logprob == pytest.approx(float(of["no"]))


def test_duplicates_score_alike_and_ties_keep_their_order(opened):
    (scored,) = rank(opened, [[noise(0)]], ["Where?"], [["red", "blue", "red"]])
    assert scored[0] == scored[2]
    best = best_first(scored)
    assert [one.text for one in best] in (["red", "red", "blue"], ["blue", "red", "red"])


def test_mistakes(opened):
    def ranked(given):
        return rank(opened, [[noise(0)]], ["Where?"], [given])

    with pytest.raises(ValueError, match="the list of candidates is empty"):
        ranked([])
    with pytest.raises(ValueError, match="the candidate '' has no tokens"):
        ranked(["red", ""])
    with pytest.raises(ValueError, match="an answer has at most 256"):
        ranked(["red " * 300])
    with pytest.raises(ValueError, match="no text stands for the label 'no'"):
        ranked({"yes": ["yes"], "no": []})
    with pytest.raises(ValueError, match="'yes' stands for 'yes' and for 'no'"):
        ranked({"yes": ["yes"], "no": ["no", "yes"]})
    with pytest.raises(ValueError, match="1 prompts come with 1 lists of images and 2 of cand"):
        rank(opened, [[noise(0)]], ["Where?"], [["red"], ["blue"]])
    for wrong in ({"length": "words"}, {"prior": "text"}, {"piece": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is "):
            RankingSettings(**wrong)
    assert log_probabilities(opened, [], [], []) == []
    assert labelled(["red", "red"]) == {"red": ("red",)}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=25),
    st.integers(1, 9),
)
def test_pieces_of_a_trie(sequences, rows):
    trie = Trie.of(sequences)
    prefixes = {tuple(one[: end + 1]) for one in sequences for end in range(len(one))}
    assert len(trie) == 1 + len(prefixes)

    def spelled(node):
        return () if node == 0 else (*spelled(trie.parents[node]), trie.tokens[node])

    assert {spelled(node) for node in range(1, len(trie))} == prefixes
    assert all(spelled(node) == sequence for sequence, node in trie.ends.items())
    assert set(trie.ends) == {tuple(one) for one in sequences}
    pieces = trie.pieces(rows)
    assert [n for piece in pieces for n in piece.nodes[piece.own :]] == list(range(1, len(trie)))
    for piece in pieces:
        assert len(piece.nodes) - piece.own <= rows
        assert piece.nodes[0] == piece.parents[0] == 0
        for row in range(1, len(piece.nodes)):
            assert piece.nodes[piece.parents[row]] == trie.parents[piece.nodes[row]]
            assert piece.parents[row] < row


@pytest.mark.usefixtures("logger_as_it_was")
def test_the_command_gives_scores_best_first(base, tmp_path, capsys):
    noise(0).save(tmp_path / "a.png")
    request = ["rank", str(base), "--image", str(tmp_path / "a.png"), "--prompt", "Where?"]
    assert main([*request, "--candidates", "red,blue,red", "--json"]) == 0
    printed = capsys.readouterr()
    assert "'red' is given more than once" in printed.err
    found = json.loads(printed.out)["candidates"]
    assert sorted(one["text"] for one in found) == ["blue", "red"]
    assert found[0]["logprob"] > found[1]["logprob"]
    assert all(one["score"] == one["logprob"] for one in found)
