"""VisDial: ten questions about an image, each with a hundred answers to rank.

visdial/visdial_1.0_val.json, visdial/images/VisualDialog_val2018/VisualDialog_val2018_*.jpg
"""

from random import Random
from typing import Any

from ibtrain.data.toy.pictures import ToyWriter, write_json
from ibtrain.data.toy.text import captions, plural, presence, questions
from ibtrain.data.toy.world import COLORS, POSITIONS, SHAPES, WORDS, Scene

ROUNDS = 10
OPTIONS = 100
_NAME = "VisualDialog_val2018_{:012d}.jpg"


def write(toy: ToyWriter) -> None:
    """Writes the validation split, which is the one that has the answers."""
    folder = toy.folder("visdial")
    pictures = toy.draw(
        folder / "images/VisualDialog_val2018",
        "visdial",
        range(1, 1 + toy.few),
        _NAME.format,
    )
    pool = _answers()
    places = {answer: index for index, answer in enumerate(pool)}
    asked: dict[str, int] = {}
    dialogs: list[dict[str, Any]] = []
    for picture in pictures:
        random = picture.random("dialog")
        rounds = []
        for question, answer in _rounds(picture.scene, random):
            options = _options(answer, pool, random)
            rounds.append(
                {
                    "question": asked.setdefault(question, len(asked)),
                    "answer": places[answer],
                    "answer_options": [places[option] for option in options],
                    "gt_index": options.index(answer),
                }
            )
        caption = captions(picture.scene)[2]
        dialogs.append({"image_id": picture.number, "caption": caption, "dialog": rounds})
    data = {"questions": list(asked), "answers": pool, "dialogs": dialogs}
    write_json(folder / "visdial_1.0_val.json", {"version": "1.0", "split": "val", "data": data})
    toy.count("visdial", "val", ROUNDS * len(dialogs))


def _rounds(scene: Scene, random: Random) -> list[tuple[str, str]]:
    """Ten different questions with their answers, in the spelling of the real files: no "?"."""
    asked = [(question.question, question.answer) for question in questions(scene, random)]
    asked += [(question, "yes" if holds else "no") for question, holds in presence(scene, random)]
    return [(question.lower().removesuffix("?"), answer) for question, answer in asked[:ROUNDS]]


def _answers() -> list[str]:
    """Everything that anybody answers or is offered as an answer."""
    names = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
    plain = ["yes", "no", "0", "1", "2", "3", *COLORS, *SHAPES, *POSITIONS, *WORDS]
    pairs = [f"{one} and {other}" for one in COLORS for other in COLORS if one < other]
    counted = [f"2 {color} {plural(shape)}" for color in COLORS for shape in SHAPES]
    placed = [f"a {name} at the {position}" for name in names for position in POSITIONS]
    worded = [f"the word {word} at the {position}" for word in WORDS for position in POSITIONS]
    return [*plain, *(f"a {name}" for name in names), *pairs, *counted, *placed, *worded]


def _options(answer: str, pool: list[str], random: Random) -> list[str]:
    """The answer among 99 others, none of which repeats a word of it and so may be as right."""
    words = set(answer.split())
    others = [other for other in pool if not words & set(other.split())]
    options = [answer, *random.sample(others, OPTIONS - 1)]
    random.shuffle(options)
    return options
