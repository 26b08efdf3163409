from random import Random

from ibtrain.data.toy.knowledge import (
    CORNERS,
    FRUIT,
    knowledge_questions,
    meme,
    reasoning,
    statement,
)
from ibtrain.data.toy.text import Question
from ibtrain.data.toy.world import COLORS, SHAPES, Scene, Thing, Word, sample_scene

SCENE = Scene((Thing("purple", "triangle", 0), Thing("white", "square", 3)), Word("sun", 1))


def test_everything_in_the_world_is_known():
    assert set(CORNERS) == set(SHAPES) and set(FRUIT) == set(COLORS)


def test_knowledge_questions_in_full():
    asked: dict[str, Question] = {}
    for seed in range(20):
        found = knowledge_questions(SCENE, Random(seed))
        assert {question.kind for question in found} == {"corners", "fruit", "meaning"}
        asked |= {question.question: question for question in found}
    said = {text: (q.answer, q.also, q.full_answer) for text, q in asked.items()}
    assert said == {
        "How many corners does the purple object have?": (
            "3",
            None,
            "The purple object is a triangle, which has 3 corners.",
        ),
        "How many corners does the white object have?": (
            "4",
            None,
            "The white object is a square, which has 4 corners.",
        ),
        "Which fruit has the color of the triangle?": (
            "plum",
            "grape",
            "The triangle is purple, the color of a plum.",
        ),
        "Which fruit has the color of the square?": (
            "coconut",
            "lychee",
            "The square is white, the color of a coconut.",
        ),
        "What does the word name?": ("star", None, "The word sun is written, which names a star."),
    }
    for question in asked.values():
        assert len(set(question.choices)) == 4 and question.answer in question.choices
        assert question.also not in question.choices  # it would be as right


def test_ambiguous_things_are_not_asked_about():
    twins = Scene((Thing("red", "circle", 0), Thing("red", "circle", 2)))
    assert knowledge_questions(twins, Random(0)) == []


def test_reasoning_in_full():
    assert {reasoning(SCENE, Random(seed)) for seed in range(40)} == {
        (
            "How many corners do the objects have together?",
            "The triangle has 3 and the square has 4. Together that is 7.",
        ),
        (
            "Are the purple triangle and the white square in the same row?",
            "The purple triangle is at the top left, in the top row. "
            "The white square is at the bottom right, in the bottom row, so they are not.",
        ),
        (
            "Are the white square and the purple triangle in the same row?",
            "The white square is at the bottom right, in the bottom row. "
            "The purple triangle is at the top left, in the top row, so they are not.",
        ),
        (
            "What has the most corners, and why?",
            "The purple triangle has 3 corners and the white square has 4 corners. "
            "4 is the most, so the answer is the white square.",
        ),
    }
    same_row = Scene((Thing("red", "cross", 2), Thing("blue", "cross", 3)))
    answers = {answer for _, answer in (reasoning(same_row, Random(n)) for n in range(40))}
    assert (
        "The red cross is at the bottom left, in the bottom row. "
        "The blue cross is at the bottom right, in the bottom row, so they are."
    ) in answers
    assert (
        "The red cross has 12 corners and the blue cross has 12 corners. "
        "12 is the most, so the answer is the red cross and the blue cross."
    ) in answers


def test_statements_are_true_or_false_as_asked():
    scene = Scene((Thing("red", "circle", 0), Thing("blue", "square", 3)))
    true = {statement(scene, Random(seed), true=True) for seed in range(60)}
    false = {statement(scene, Random(seed), true=False) for seed in range(60)}
    red, blue = "The red circle is", "The blue square is"
    assert true == {
        (f"{red} left of the blue square.", "left of"),
        (f"{red} above the blue square.", "above"),
        (f"{blue} right of the red circle.", "right of"),
        (f"{blue} below the red circle.", "below"),
    }
    assert false == {
        (f"{red} right of the blue square.", "right of"),
        (f"{red} below the blue square.", "below"),
        (f"{blue} left of the red circle.", "left of"),
        (f"{blue} above the red circle.", "above"),
    }
    beside = Scene((Thing("red", "circle", 0),), Word("key", 1))
    assert {statement(beside, Random(seed), true=True) for seed in range(60)} == {
        (f"{red} left of the word key.", "left of"),
        ("The word key is right of the red circle.", "right of"),
    }


def test_no_statement_where_nothing_can_be_told_apart():
    assert statement(Scene((Thing("red", "circle", 0),)), Random(0), true=True) is None
    twins = Scene((Thing("red", "circle", 0), Thing("red", "circle", 1)))
    assert statement(twins, Random(0), true=True) is None


def test_a_meme_is_unkind_only_to_what_its_picture_shows():
    labels = set()
    for seed in range(200):
        random = Random(seed)
        scene = sample_scene(random, held_out=False)
        text, unkind = meme(scene, random)
        opinion, _, shape = text.rpartition(" a ")
        shown = shape in {thing.shape for thing in scene.objects}
        assert unkind == (opinion == "nobody likes" and shown)
        labels.add((opinion, shown, unkind))
    assert len(labels) == 4  # neither the text alone nor the picture alone tells
