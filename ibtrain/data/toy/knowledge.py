"""Text that is true of a scene to whoever knows a little about shapes, fruit and words.

What must be known beyond the picture: how many corners a shape has, which fruit has a color, what a
written word names. Everything is a function of the scene and the random generator passed in.
"""

from collections import Counter
from random import Random

from ibtrain.data.toy.text import Question, four_choices, joined, named_places, only, with_article
from ibtrain.data.toy.world import POSITIONS, Scene

CORNERS = {"circle": 0, "square": 4, "triangle": 3, "cross": 12}
FRUIT = {  # the first is what most people name
    "red": ("cherry", "apple"),
    "green": ("lime", "pear"),
    "blue": ("blueberry", "sloe"),
    "yellow": ("banana", "lemon"),
    "purple": ("plum", "grape"),
    "white": ("coconut", "lychee"),
}
MEANINGS = {"cat": "animal", "dog": "animal", "sun": "star", "key": "tool"}
_OTHER_MEANINGS = ("animal", "star", "tool", "plant", "river")
_ROWS = ("top", "bottom")


def knowledge_questions(scene: Scene, random: Random) -> list[Question]:
    """At most one question of every kind, in random order: corners, fruit, meaning."""
    asked = []
    if things := only(scene, "color"):
        thing = random.choice(things)
        corners = str(CORNERS[thing.shape])
        asked.append(
            Question(
                "corners",
                f"How many corners does the {thing.color} object have?",
                corners,
                four_choices(corners, ("0", "3", "4", "12"), random),
                f"The {thing.color} object is a {thing.shape}, which has {corners} corners.",
            )
        )
    if things := only(scene, "shape"):
        thing = random.choice(things)
        fruit, also = FRUIT[thing.color]
        others = tuple(pair[0] for pair in FRUIT.values())
        asked.append(
            Question(
                "fruit",
                f"Which fruit has the color of the {thing.shape}?",
                fruit,
                four_choices(fruit, others, random),
                f"The {thing.shape} is {thing.color}, the color of a {fruit}.",
                also,
            )
        )
    if scene.word is not None:
        meaning = MEANINGS[scene.word.text]
        asked.append(
            Question(
                "meaning",
                "What does the word name?",
                meaning,
                four_choices(meaning, _OTHER_MEANINGS, random),
                f"The word {scene.word.text} is written, which names {with_article(meaning)}.",
            )
        )
    random.shuffle(asked)
    return asked


def reasoning(scene: Scene, random: Random) -> tuple[str, str]:
    """A question that takes several steps, and an answer that shows them."""
    makers = [_corners_together]
    names = Counter(thing.name for thing in scene.objects)
    if len(names) > 1 and max(names.values()) == 1:
        makers += [_same_row, _most_corners]
    return random.choice(makers)(scene, random)


def _corners_together(scene: Scene, random: Random) -> tuple[str, str]:
    steps = [f"the {thing.shape} has {CORNERS[thing.shape]}" for thing in scene.objects]
    total = sum(CORNERS[thing.shape] for thing in scene.objects)
    steps[0] = steps[0].capitalize()
    return (
        "How many corners do the objects have together?",
        f"{joined(steps)}. Together that is {total}.",
    )


def _same_row(scene: Scene, random: Random) -> tuple[str, str]:
    one, other = random.sample(scene.objects, 2)
    rows = [_ROWS[thing.quadrant // 2] for thing in (one, other)]
    verdict = "so they are" if rows[0] == rows[1] else "so they are not"
    return (
        f"Are the {one.name} and the {other.name} in the same row?",
        f"The {one.name} is at the {POSITIONS[one.quadrant]}, in the {rows[0]} row. "
        f"The {other.name} is at the {POSITIONS[other.quadrant]}, in the {rows[1]} row, {verdict}.",
    )


def _most_corners(scene: Scene, random: Random) -> tuple[str, str]:
    most = max(CORNERS[thing.shape] for thing in scene.objects)
    first = [thing for thing in scene.objects if CORNERS[thing.shape] == most]
    steps = [f"the {thing.name} has {CORNERS[thing.shape]} corners" for thing in scene.objects]
    steps[0] = steps[0].capitalize()
    names = joined([f"the {thing.name}" for thing in first])
    return (
        "What has the most corners, and why?",
        f"{joined(steps)}. {most} is the most, so the answer is {names}.",
    )


def statement(scene: Scene, random: Random, *, true: bool) -> tuple[str, str] | None:
    """(statement, relation) about the places of two things, true or false as asked for.

    None where the scene has no two things that their names tell apart.
    """
    places = named_places(scene)
    counts = Counter(name for name, _ in places)
    single = [(name, quadrant) for name, quadrant in places if counts[name] == 1]
    if len(single) < 2:
        return None
    (one, here), (other, there) = random.sample(single, 2)
    holds = {
        "left of": here % 2 < there % 2,
        "right of": here % 2 > there % 2,
        "above": here // 2 < there // 2,
        "below": here // 2 > there // 2,
    }
    relation = random.choice([name for name, value in holds.items() if value == true])
    return f"The {one} is {relation} the {other}.", relation


def meme(scene: Scene, random: Random) -> tuple[str, bool]:
    """(text, whether it is unkind to something in the picture).

    The text alone does not tell, nor does the picture: half of the unkind texts are about a thing
    that is not there, and offend nobody.
    """
    unkind = random.random() < 0.6
    present = random.choice(scene.objects).shape
    absent = [shape for shape in CORNERS if all(t.shape != shape for t in scene.objects)]
    there = random.random() < 0.6 or not absent
    shape = present if there else random.choice(absent)
    opinion = "nobody likes" if unkind else "everybody likes"
    return f"{opinion} a {shape}", unkind and there
