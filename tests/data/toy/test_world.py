from collections import Counter
from random import Random

from ibtrain.data.toy.world import (
    COLORS,
    HELD_OUT_PAIRS,
    IMAGE_SIZE,
    KINDS,
    POSITIONS,
    SHAPES,
    Question,
    Scene,
    Thing,
    Word,
    captions,
    conversation,
    questions,
    render,
    sample_scene,
)

SCENE = Scene((Thing("red", "circle", 0), Thing("blue", "square", 3)), Word("cat", 1))


def everything(seed: int) -> tuple[object, ...]:
    random = Random(seed)
    scene = sample_scene(random, held_out=False)
    said = (questions(scene, random), captions(scene), conversation(scene, random))
    return (scene, *said, render(scene, random).tobytes())


def by_kind(scene: Scene, seed: int) -> dict[str, Question]:
    return {asked.kind: asked for asked in questions(scene, Random(seed))}


def test_everything_is_a_function_of_the_random_generator():
    assert everything(5) == everything(5)
    assert everything(5) != everything(6)


def test_held_out_pairs_leave_every_attribute_to_training():
    assert len(HELD_OUT_PAIRS) == 4
    trained = {
        thing.pair
        for seed in range(400)
        for thing in sample_scene(Random(seed), held_out=False).objects
    }
    assert trained == {(c, s) for c in COLORS for s in SHAPES} - HELD_OUT_PAIRS


def test_held_out_pairs_are_in_no_training_text():
    for seed in range(300):
        random = Random(seed)
        scene = sample_scene(random, held_out=False)
        text = captions(scene)
        text += [part for asked in questions(scene, random) for part in asked.choices]
        text += [part for turn in conversation(scene, random) for part in turn]
        for asked in questions(scene, random):
            text += [asked.question, asked.full_answer]
        for color, shape in HELD_OUT_PAIRS:
            assert not any(f"{color} {shape}" in line for line in text)


def test_held_out_scenes_have_a_held_out_pair():
    assert all(sample_scene(Random(seed), held_out=True).held_out for seed in range(100))


def test_objects_and_word_stand_in_quadrants_of_their_own():
    for seed in range(200):
        scene = sample_scene(Random(seed), held_out=False)
        places = [thing.quadrant for thing in scene.objects]
        places += [scene.word.quadrant] if scene.word else []
        assert len(set(places)) == len(places) and 1 <= len(scene.objects) <= 3


def test_an_object_is_drawn_in_its_quadrant_and_in_its_color():
    for quadrant in range(len(POSITIONS)):
        for color, level in COLORS.items():
            image = render(Scene((Thing(color, "square", quadrant),)), Random(quadrant))
            assert image.size == (IMAGE_SIZE, IMAGE_SIZE) and image.mode == "RGB"
            center = (12 + 24 * (quadrant % 2), 12 + 24 * (quadrant // 2))
            found = image.getpixel(center)
            assert isinstance(found, tuple)
            assert all(abs(a - b) <= 12 for a, b in zip(found, level, strict=True))
            other = image.getpixel((47 - center[0], 47 - center[1]))
            assert isinstance(other, tuple) and max(other) <= 48


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
    written = captions(SCENE)
    assert len(written) == 5
    for caption in written:
        for part in ("red circle", "blue square", "word cat", "top left", "top right"):
            assert part in caption
    assert sum("2 objects" in caption for caption in written) == 2


def test_conversations_have_two_or_three_turns():
    lengths = Counter(len(conversation(SCENE, Random(seed))) for seed in range(50))
    assert set(lengths) == {2, 3}
