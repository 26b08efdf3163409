from collections import Counter
from random import Random

import pytest

from ibtrain.data.toy.text import (
    KINDS,
    Question,
    captions,
    conversation,
    description,
    named_places,
    presence,
    questions,
    unanswerable,
)
from ibtrain.data.toy.world import (
    COLORS,
    HELD_OUT_PAIRS,
    SHAPES,
    Scene,
    Thing,
    Word,
    sample_scene,
)

SCENE = Scene((Thing("red", "circle", 0), Thing("blue", "square", 3)), Word("cat", 1))


def by_kind(scene: Scene, seed: int) -> dict[str, Question]:
    return {asked.kind: asked for asked in questions(scene, Random(seed))}


def test_held_out_pairs_are_in_no_training_text():
    for seed in range(300):
        random = Random(seed)
        scene = sample_scene(random, held_out=False)
        text = [*captions(scene, count=10), description(scene)]
        text += [part for asked in questions(scene, random) for part in asked.choices]
        text += [part for turn in conversation(scene, random) for part in turn]
        for asked in questions(scene, random):
            text += [asked.question, asked.full_answer]
        for color, shape in HELD_OUT_PAIRS:
            assert not any(f"{color} {shape}" in line for line in text)


def test_questions_about_a_scene_have_its_answers():
    asked = by_kind(SCENE, 0)
    assert set(asked) == set(KINDS)
    color = {"What color is the circle?": "red", "What color is the square?": "blue"}
    assert asked["color"].answer == color[asked["color"].question]
    shape = {"What shape is the red object?": "circle", "What shape is the blue object?": "square"}
    assert asked["shape"].answer == shape[asked["shape"].question]
    where = {
        "Where is the circle?": "top left",
        "Where is the red object?": "top left",
        "Where is the square?": "bottom right",
        "Where is the blue object?": "bottom right",
    }
    assert asked["position"].answer == where[asked["position"].question]
    assert (asked["word"].question, asked["word"].answer) == ("What word is written?", "cat")


def test_ambiguous_questions_are_not_asked():
    twins = Scene((Thing("red", "circle", 0), Thing("red", "circle", 2)))
    assert set(by_kind(twins, 1)) == {"count"}


def test_answers_are_short_and_among_four_choices():
    kinds: Counter[str] = Counter()
    for seed in range(300):
        random = Random(seed)
        for asked in questions(sample_scene(random, held_out=seed % 2 == 0), random):
            kinds[asked.kind] += 1
            assert asked.answer == asked.answer.lower() and len(asked.answer.split()) <= 2
            assert len(set(asked.choices)) == 4 and asked.answer in asked.choices
    assert set(kinds) == set(KINDS)


def test_captions_name_everything():
    assert len(captions(SCENE)) == 5
    written = captions(SCENE, count=10)
    assert len(set(written)) == 10 and written[:5] == captions(SCENE)
    for caption in written:
        for part in ("red circle", "blue square", "word cat", "top left", "top right"):
            assert part in caption
    assert sum("2 objects" in caption for caption in written) == 3


def test_conversations_have_two_or_three_turns():
    lengths = Counter(len(conversation(SCENE, Random(seed))) for seed in range(50))
    assert set(lengths) == {2, 3}


def test_a_description_goes_through_the_four_places():
    assert description(SCENE) == (
        "A red circle is at the top left. The word cat is written at the top right. "
        "Nothing is at the bottom left. A blue square is at the bottom right. "
        "There are 2 objects in all."
    )
    single = Scene((Thing("white", "cross", 2),))
    assert description(single) == (
        "Nothing is at the top left. Nothing is at the top right. "
        "A white cross is at the bottom left. Nothing is at the bottom right. "
        "There is 1 object in all."
    )
    assert named_places(SCENE) == [("red circle", 0), ("word cat", 1), ("blue square", 3)]


def test_presence_asks_after_every_shape_color_and_the_word():
    expected = {f"Is there a {shape}?": shape in ("circle", "square") for shape in SHAPES}
    expected |= {f"Is anything {color}?": color in ("red", "blue") for color in COLORS}
    assert dict(presence(SCENE, Random(0))) == expected | {"Is a word written?": True}


@pytest.mark.parametrize("seed", range(30))
def test_what_cannot_be_answered_is_not_there(seed: int):
    scene = sample_scene(Random(seed), held_out=False)
    asked = unanswerable(scene, Random(seed))
    if asked == "What word is written?":
        assert scene.word is None
    else:
        shape = asked.removeprefix("What color is the ").removesuffix("?")
        assert shape in SHAPES and all(thing.shape != shape for thing in scene.objects)
