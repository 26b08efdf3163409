from random import Random

from PIL import ImageChops

from ibtrain.data.toy.world import (
    COLORS,
    HELD_OUT_PAIRS,
    IMAGE_SIZE,
    POSITIONS,
    SHAPES,
    Scene,
    Thing,
    Word,
    render,
    sample_scene,
)


def test_everything_is_a_function_of_the_random_generator():
    def drawn(seed: int) -> tuple[Scene, bytes]:
        random = Random(seed)
        scene = sample_scene(random, held_out=False)
        return scene, render(scene, random).tobytes()

    assert drawn(5) == drawn(5)
    assert drawn(5) != drawn(6)


def test_held_out_pairs_leave_every_attribute_to_training():
    assert len(HELD_OUT_PAIRS) == 4
    trained = {
        thing.pair
        for seed in range(400)
        for thing in sample_scene(Random(seed), held_out=False).objects
    }
    assert trained == {(c, s) for c in COLORS for s in SHAPES} - HELD_OUT_PAIRS


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


def test_the_share_of_scenes_with_a_word():
    for share, expected in ((0.0, 0), (1.0, 200)):
        scenes = [sample_scene(Random(n), held_out=False, word_share=share) for n in range(200)]
        assert sum(scene.word is not None for scene in scenes) == expected


def test_a_word_is_drawn_in_its_quadrant():
    plain = Scene((Thing("red", "circle", 0),))
    for quadrant in (1, 2, 3):
        written = Scene(plain.objects, Word("cat", quadrant))
        before, after = (render(scene, Random(1)) for scene in (plain, written))
        box = ImageChops.difference(before, after).getbbox()
        assert box is not None
        left, top = 24 * (quadrant % 2), 24 * (quadrant // 2)
        assert left <= box[0] < box[2] <= left + 24
        assert top <= box[1] < box[3] <= top + 24
