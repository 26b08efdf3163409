"""The rendered world: scenes of shapes, colours, positions and words, and true text about them.

A scene is a 2x2 grid of quadrants; one to three objects stand in quadrants of their own, and now
and then a word is drawn in a free one. Nothing here knows of annotation files (see layouts.py), and
everything is a function of the random generator passed in.

Four of the 24 (color, shape) pairs are held out: they occur in no training image and no training
text, while each color and each shape does occur in training. A model that binds the two attributes
answers for unseen pairs as well.
"""

from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw, ImageFont

IMAGE_SIZE = 48  # pixels, both sides
QUADRANT_SIZE = IMAGE_SIZE // 2
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (225, 40, 40),
    "green": (40, 190, 60),
    "blue": (55, 95, 250),
    "yellow": (240, 220, 40),
    "purple": (175, 60, 215),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "cross")
WORDS = ("cat", "dog", "sun", "key")
POSITIONS = ("top left", "top right", "bottom left", "bottom right")
KINDS = ("color", "shape", "count", "position", "word")
HELD_OUT_PAIRS = frozenset(
    {("red", "triangle"), ("green", "cross"), ("blue", "circle"), ("yellow", "square")}
)
WORD_SHARE = 0.5
_OVERSAMPLING = 4
_PAIRS = tuple((color, shape) for color in COLORS for shape in SHAPES)
_TRAINING_PAIRS = tuple(pair for pair in _PAIRS if pair not in HELD_OUT_PAIRS)


@dataclass(frozen=True)
class Thing:
    """One object; `quadrant` indexes POSITIONS."""

    color: str
    shape: str
    quadrant: int

    @property
    def pair(self) -> tuple[str, str]:
        """The combination of attributes that may be held out."""
        return (self.color, self.shape)

    @property
    def name(self) -> str:
        """For example "red circle"."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Word:
    """A word drawn as text; `quadrant` indexes POSITIONS."""

    text: str
    quadrant: int


@dataclass(frozen=True)
class Scene:
    """What is in an image; sizes and places within a quadrant are chosen when it is rendered."""

    objects: tuple[Thing, ...]
    word: Word | None = None

    @property
    def held_out(self) -> bool:
        """Whether some object has a held-out pair."""
        return any(thing.pair in HELD_OUT_PAIRS for thing in self.objects)


@dataclass(frozen=True)
class Question:
    """A question with one right answer, four choices that hold it, and the answer as a sentence."""

    kind: str
    question: str
    answer: str
    choices: tuple[str, ...]
    full_answer: str


def sample_scene(random: Random, *, held_out: bool) -> Scene:
    """Draws a scene of one to three objects.

    With `held_out` at least one object has a held-out pair and the others have any; without, every
    object has a pair of training.
    """
    count = random.choice((1, 1, 1, 2, 2, 3))
    quadrants = random.sample(range(len(POSITIONS)), count + 1)
    pairs = [random.choice(_PAIRS if held_out else _TRAINING_PAIRS) for _ in range(count)]
    if held_out:
        pairs[0] = random.choice(sorted(HELD_OUT_PAIRS))
    objects = tuple(
        Thing(color, shape, quadrant)
        for (color, shape), quadrant in zip(pairs, quadrants, strict=False)
    )
    word = Word(random.choice(WORDS), quadrants[-1]) if random.random() < WORD_SHARE else None
    return Scene(objects, word)


def render(scene: Scene, random: Random) -> Image.Image:
    """Draws the scene as an RGB image of IMAGE_SIZE x IMAGE_SIZE pixels."""
    background = tuple(random.randint(12, 48) for _ in range(3))
    large = Image.new("RGB", (IMAGE_SIZE * _OVERSAMPLING,) * 2, background)
    draw = ImageDraw.Draw(large)
    for thing in scene.objects:
        _draw_thing(draw, thing, random)
    image = large.reduce(_OVERSAMPLING)
    if scene.word is not None:
        _draw_word(image, scene.word, random)
    return image


def _corner(
    quadrant: int, width: int, height: int, random: Random, jitter: int = 2
) -> tuple[int, int]:
    """Somewhere near the middle of its quadrant, and inside it."""
    row, column = divmod(quadrant, 2)

    def place(length: int) -> int:
        room = QUADRANT_SIZE - length
        return max(1, min(room - 1, room // 2 + random.randint(-jitter, jitter)))

    return column * QUADRANT_SIZE + place(width), row * QUADRANT_SIZE + place(height)


def _draw_thing(draw: ImageDraw.ImageDraw, thing: Thing, random: Random) -> None:
    size = random.randint(13, 18)
    left, top = (value * _OVERSAMPLING for value in _corner(thing.quadrant, size, size, random))
    side = size * _OVERSAMPLING - 1
    right, bottom = left + side, top + side
    red, green, blue = (
        max(0, min(255, level + random.randint(-12, 12))) for level in COLORS[thing.color]
    )
    fill = (red, green, blue)
    if thing.shape == "circle":
        draw.ellipse((left, top, right, bottom), fill=fill)
    elif thing.shape == "square":
        draw.rectangle((left, top, right, bottom), fill=fill)
    elif thing.shape == "triangle":
        draw.polygon([(left + side // 2, top), (left, bottom), (right, bottom)], fill=fill)
    else:
        arm = side * 3 // 10
        middle = side // 2
        draw.rectangle((left + middle - arm // 2, top, left + middle + arm // 2, bottom), fill=fill)
        draw.rectangle((left, top + middle - arm // 2, right, top + middle + arm // 2), fill=fill)


def _draw_word(image: Image.Image, word: Word, random: Random) -> None:
    font = ImageFont.load_default_imagefont()
    text = word.text.upper()
    left, top, right, bottom = font.getbbox(text)
    corner = _corner(word.quadrant, int(right - left), int(bottom - top), random, 1)
    level = random.randint(215, 255)
    ImageDraw.Draw(image).text(corner, text, fill=(level, level, level), font=font)


def questions(scene: Scene, random: Random) -> list[Question]:
    """At most one question of every kind, in random order; only those with one right answer."""
    makers = (_color, _shape, _count, _position, _word)
    asked = [question for maker in makers if (question := maker(scene, random)) is not None]
    random.shuffle(asked)
    return asked


def _choices(answer: str, others: tuple[str, ...], random: Random) -> tuple[str, ...]:
    chosen = [answer, *random.sample([other for other in others if other != answer], 3)]
    random.shuffle(chosen)
    return tuple(chosen)


def _pick(things: list[Thing], random: Random) -> Thing | None:
    """One of `things`, rather one with a held-out pair, so that such get asked about."""
    held_out = [thing for thing in things if thing.pair in HELD_OUT_PAIRS]
    return random.choice(held_out or things) if things else None


def _only(scene: Scene, attribute: str) -> list[Thing]:
    """The objects that no other shares `attribute` with."""
    values = [getattr(thing, attribute) for thing in scene.objects]
    return [thing for thing in scene.objects if values.count(getattr(thing, attribute)) == 1]


def _color(scene: Scene, random: Random) -> Question | None:
    thing = _pick(_only(scene, "shape"), random)
    if thing is None:
        return None
    return Question(
        "color",
        f"What color is the {thing.shape}?",
        thing.color,
        _choices(thing.color, tuple(COLORS), random),
        f"The {thing.shape} is {thing.color}.",
    )


def _shape(scene: Scene, random: Random) -> Question | None:
    thing = _pick(_only(scene, "color"), random)
    if thing is None:
        return None
    return Question(
        "shape",
        f"What shape is the {thing.color} object?",
        thing.shape,
        _choices(thing.shape, SHAPES, random),
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
    plural = "crosses" if noun == "cross" else f"{noun}s"
    return Question(
        "count",
        f"How many {plural} are there?",
        str(number),
        _choices(str(number), ("0", "1", "2", "3"), random),
        f"There is 1 {noun}." if number == 1 else f"There are {number} {plural}.",
    )


def _position(scene: Scene, random: Random) -> Question | None:
    """Of an object named by its shape, or by its color, whichever names it alone."""
    named = [(f"the {thing.shape}", thing) for thing in _only(scene, "shape")]
    named += [(f"the {thing.color} object", thing) for thing in _only(scene, "color")]
    if not named:
        return None
    name, thing = random.choice(named)
    answer = POSITIONS[thing.quadrant]
    return Question(
        "position",
        f"Where is {name}?",
        answer,
        _choices(answer, POSITIONS, random),
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
        _choices(text, WORDS, random),
        f"The word {text} is written.",
    )


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _listing(scene: Scene, *, place_first: bool = False) -> str:
    """Every object and the word with their positions, from top left to bottom right.

    A fixed order leaves nothing in a caption but what the image decides, so every token of it
    teaches the image; in random order the same towers need several times the steps.
    """
    named = {thing.quadrant: f"a {thing.name}" for thing in scene.objects}
    if scene.word is not None:
        named[scene.word.quadrant] = f"the word {scene.word.text}"
    parts = [(POSITIONS[quadrant], named[quadrant]) for quadrant in sorted(named)]
    if place_first:
        return _joined([f"at the {position} {name}" for position, name in parts])
    return _joined([f"{name} at the {position}" for position, name in parts])


def captions(scene: Scene) -> list[str]:
    """Five true captions; each names every object and the word with its position."""
    count = len(scene.objects)
    counted = f"{count} object{'' if count == 1 else 's'}"
    return [
        _listing(scene),
        f"{counted}: {_listing(scene)}",
        f"a picture of {_listing(scene)}",
        _listing(scene, place_first=True),
        f"{_listing(scene)}: {counted}",
    ]


def conversation(scene: Scene, random: Random) -> list[tuple[str, str]]:
    """Two or three (human, assistant) turns in whole sentences, about one scene."""
    turns = [(asked.question, asked.full_answer) for asked in questions(scene, random)]
    turns = turns[: random.choice((2, 3))]
    if random.random() < 0.5:
        turns[0] = ("What do you see?", f"There is {_listing(scene)}.")
    return turns
