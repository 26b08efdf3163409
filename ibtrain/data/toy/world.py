"""The rendered world: scenes of shapes, colours, positions and words.

A scene is a 2x2 grid of quadrants; one to three objects stand in quadrants of their own, and now
and then a word is drawn in a free one. What is true of a scene is said in text.py and knowledge.py;
nothing here knows of annotation files, and everything is a function of the random generator passed
in.

Four of the 24 (color, shape) pairs are held out: they occur in no training image and no training
text, while each color and each shape does occur in training. A model that binds the two attributes
answers for unseen pairs as well.
"""

from dataclasses import dataclass
from functools import cache
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


def sample_scene(random: Random, *, held_out: bool, word_share: float = WORD_SHARE) -> Scene:
    """Draws a scene of one to three objects.

    With `held_out` at least one object has a held-out pair and the others have any; without, every
    object has a pair of training. `word_share` of the scenes have a word.
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
    word = Word(random.choice(WORDS), quadrants[-1]) if random.random() < word_share else None
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


@cache
def small_font() -> ImageFont.ImageFont:
    """The font that words are drawn in, six pixels to a letter."""
    return ImageFont.load_default_imagefont()


def _draw_word(image: Image.Image, word: Word, random: Random) -> None:
    font = small_font()
    text = word.text.upper()
    left, top, right, bottom = font.getbbox(text)
    corner = _corner(word.quadrant, int(right - left), int(bottom - top), random, 1)
    level = random.randint(215, 255)
    ImageDraw.Draw(image).text(corner, text, fill=(level, level, level), font=font)
