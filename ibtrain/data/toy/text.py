"""True text about a scene: questions with one right answer, captions, conversations.

Everything is a function of the scene and the random generator passed in.
"""

from dataclasses import dataclass
from random import Random

from ibtrain.data.toy.world import (
    COLORS,
    HELD_OUT_PAIRS,
    POSITIONS,
    SHAPES,
    WORDS,
    Scene,
    Thing,
)

KINDS = ("color", "shape", "count", "position", "word")


@dataclass(frozen=True)
class Question:
    """A question with one right answer, four choices that hold it, and the answer as a sentence.

    `also` is another way of answering, as true, which some of the annotators give.
    """

    kind: str
    question: str
    answer: str
    choices: tuple[str, ...]
    full_answer: str
    also: str | None = None


def questions(scene: Scene, random: Random) -> list[Question]:
    """At most one question of every kind, in random order; only those with one right answer."""
    makers = (_color, _shape, _count, _position, _word)
    asked = [question for maker in makers if (question := maker(scene, random)) is not None]
    random.shuffle(asked)
    return asked


def four_choices(answer: str, others: tuple[str, ...], random: Random) -> tuple[str, ...]:
    """The answer among three of `others`, in random order."""
    chosen = [answer, *random.sample([other for other in others if other != answer], 3)]
    random.shuffle(chosen)
    return tuple(chosen)


def _pick(things: list[Thing], random: Random) -> Thing | None:
    """One of `things`, rather one with a held-out pair, so that such get asked about."""
    held_out = [thing for thing in things if thing.pair in HELD_OUT_PAIRS]
    return random.choice(held_out or things) if things else None


def only(scene: Scene, attribute: str) -> list[Thing]:
    """The objects that no other shares `attribute` with."""
    values = [getattr(thing, attribute) for thing in scene.objects]
    return [thing for thing in scene.objects if values.count(getattr(thing, attribute)) == 1]


def _color(scene: Scene, random: Random) -> Question | None:
    thing = _pick(only(scene, "shape"), random)
    if thing is None:
        return None
    return Question(
        "color",
        f"What color is the {thing.shape}?",
        thing.color,
        four_choices(thing.color, tuple(COLORS), random),
        f"The {thing.shape} is {thing.color}.",
    )


def _shape(scene: Scene, random: Random) -> Question | None:
    thing = _pick(only(scene, "color"), random)
    if thing is None:
        return None
    return Question(
        "shape",
        f"What shape is the {thing.color} object?",
        thing.shape,
        four_choices(thing.shape, SHAPES, random),
        f"The {thing.color} object is a {thing.shape}.",
    )


def _count(scene: Scene, random: Random) -> Question:
    if random.random() < 0.5:
        number, noun = len(scene.objects), "object"
    else:
        # the number is drawn before the shape: shapes alone would make "0" the answer to most
        by_number: dict[int, list[str]] = {}
        for shape in SHAPES:
            number = sum(thing.shape == shape for thing in scene.objects)
            by_number.setdefault(number, []).append(shape)
        number = random.choice(sorted(by_number))
        noun = random.choice(by_number[number])
    return Question(
        "count",
        f"How many {plural(noun)} are there?",
        str(number),
        four_choices(str(number), ("0", "1", "2", "3"), random),
        f"There is 1 {noun}." if number == 1 else f"There are {number} {plural(noun)}.",
    )


def _position(scene: Scene, random: Random) -> Question | None:
    """Of an object named by its shape, or by its color, whichever names it alone."""
    named = [(f"the {thing.shape}", thing) for thing in only(scene, "shape")]
    named += [(f"the {thing.color} object", thing) for thing in only(scene, "color")]
    if not named:
        return None
    name, thing = random.choice(named)
    answer = POSITIONS[thing.quadrant]
    return Question(
        "position",
        f"Where is {name}?",
        answer,
        four_choices(answer, POSITIONS, random),
        f"{name.capitalize()} is at the {answer}.",
    )


def _word(scene: Scene, random: Random) -> Question | None:
    if scene.word is None:
        return None
    text = scene.word.text
    return Question(
        "word",
        "What word is written?",
        text,
        four_choices(text, WORDS, random),
        f"The word {text} is written.",
    )


def plural(noun: str) -> str:
    """Of a shape or of "object"."""
    return f"{noun}es" if noun == "cross" else f"{noun}s"


def with_article(noun: str) -> str:
    """For example "an animal"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def joined(parts: list[str]) -> str:
    """For example "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def named_places(scene: Scene) -> list[tuple[str, int]]:
    """(name, quadrant) of every object and the word, from top left to bottom right."""
    places = {thing.quadrant: thing.name for thing in scene.objects}
    if scene.word is not None:
        places[scene.word.quadrant] = f"word {scene.word.text}"
    return [(places[quadrant], quadrant) for quadrant in sorted(places)]


def _listing(scene: Scene, *, place_first: bool = False) -> str:
    """Every object and the word with their positions, from top left to bottom right.

    A fixed order leaves nothing in a caption but what the image decides, so every token of it
    teaches the image; in random order the same towers need several times the steps.
    """
    parts = [
        (POSITIONS[quadrant], f"{'the' if name.startswith('word ') else 'a'} {name}")
        for name, quadrant in named_places(scene)
    ]
    if place_first:
        return joined([f"at the {position} {name}" for position, name in parts])
    return joined([f"{name} at the {position}" for position, name in parts])


def captions(scene: Scene, count: int = 5) -> list[str]:
    """Up to ten true captions; each names every object and the word with its position."""
    things = len(scene.objects)
    counted = f"{things} object{'' if things == 1 else 's'}"
    listing = _listing(scene)
    forms = [
        listing,
        f"{counted}: {listing}",
        f"a picture of {listing}",
        _listing(scene, place_first=True),
        f"{listing}: {counted}",
        f"there is {listing}",
        f"{listing}, on a dark ground",
        f"a dark picture with {listing}",
        f"what one sees is {listing}",
        f"{counted} in a dark picture: {listing}",
    ]
    return forms[:count]


def conversation(scene: Scene, random: Random) -> list[tuple[str, str]]:
    """Two or three (human, assistant) turns in whole sentences, about one scene."""
    turns = [(asked.question, asked.full_answer) for asked in questions(scene, random)]
    turns = turns[: random.choice((2, 3))]
    if random.random() < 0.5:
        turns[0] = ("What do you see?", f"There is {_listing(scene)}.")
    return turns


def description(scene: Scene) -> str:
    """Several sentences: what stands in each of the four places, and how many objects there are."""
    names = {quadrant: name for name, quadrant in named_places(scene)}
    sentences = []
    for quadrant, position in enumerate(POSITIONS):
        name = names.get(quadrant)
        if name is None:
            sentences.append(f"Nothing is at the {position}.")
        elif name.startswith("word "):
            sentences.append(f"The {name} is written at the {position}.")
        else:
            sentences.append(f"A {name} is at the {position}.")
    count = len(scene.objects)
    counted = "There is 1 object" if count == 1 else f"There are {count} objects"
    return " ".join([*sentences, f"{counted} in all."])


def presence(scene: Scene, random: Random) -> list[tuple[str, bool]]:
    """Questions of yes or no about each shape, each color and the word, in random order."""
    shapes = {thing.shape for thing in scene.objects}
    colors = {thing.color for thing in scene.objects}
    asked = [(f"Is there a {shape}?", shape in shapes) for shape in SHAPES]
    asked += [(f"Is anything {color}?", color in colors) for color in COLORS]
    asked.append(("Is a word written?", scene.word is not None))
    random.shuffle(asked)
    return asked


def unanswerable(scene: Scene, random: Random) -> str:
    """A question about something that the scene does not show."""
    missing = [shape for shape in SHAPES if all(thing.shape != shape for thing in scene.objects)]
    asked = [f"What color is the {shape}?" for shape in missing]
    if scene.word is None:
        asked.append("What word is written?")
    return random.choice(asked)
