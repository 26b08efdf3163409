"""The three LLaVA sets, on COCO's images.

llava/{conversation_58k,detail_23k,complex_reasoning_77k}.json
"""

from collections.abc import Iterable
from random import Random
from typing import Any

from ibtrain.data.toy.coco import CocoPictures
from ibtrain.data.toy.knowledge import reasoning
from ibtrain.data.toy.pictures import Picture, ToyWriter, write_json
from ibtrain.data.toy.text import conversation, description

_IMAGES_PER_DESCRIPTION = 3  # LLaVA's sets are of 58, 23 and 77 thousand
_IMAGES_PER_REASONING = 2
REQUESTS = (
    "Describe the following image.",
    "What is in the picture? Tell it in detail.",
    "Can you describe every part of the image?",
    "Give a detailed description of the image.",
)


def write(toy: ToyWriter, coco: CocoPictures) -> None:
    """Writes the three files; COCO's images are there already."""
    pictures = coco.train
    described = [
        (picture, [described_picture(picture)]) for picture in pictures[::_IMAGES_PER_DESCRIPTION]
    ]
    reasoned = [
        (picture, [reasoning(picture.scene, picture.random("reasoning"))])
        for picture in pictures[::_IMAGES_PER_REASONING]
    ]
    talked = [(picture, picture_conversation(picture)) for picture in pictures]
    _write_set(toy, "llava_conversation", "conversation_58k.json", talked)
    _write_set(toy, "llava_detail", "detail_23k.json", described)
    _write_set(toy, "llava_reasoning", "complex_reasoning_77k.json", reasoned)


def picture_conversation(picture: Picture) -> list[tuple[str, str]]:
    """The (human, assistant) turns on one picture."""
    return conversation(picture.scene, picture.random("conversation"))


def described_picture(picture: Picture) -> tuple[str, str]:
    """A request to describe the picture, and the description."""
    return picture.random("detail").choice(REQUESTS), description(picture.scene)


def _write_set(
    toy: ToyWriter,
    dataset: str,
    name: str,
    said: Iterable[tuple[Picture, list[tuple[str, str]]]],
) -> None:
    rows: list[dict[str, Any]] = []
    for picture, turns in said:
        number = f"{picture.number:012d}"
        written = turns_of(turns, picture.random("image mark"))
        rows.append({"id": number, "image": f"{number}.jpg", "conversations": written})
        toy.said += [part for turn in turns for part in turn]
    write_json(toy.folder(dataset) / name, rows)
    toy.count(dataset, "train", len(rows))


def turns_of(pairs: list[tuple[str, str]], random: Random | None) -> list[dict[str, str]]:
    """Turns as LLaVA writes them; with `random`, the first has the mark of the image."""
    turns: list[dict[str, str]] = []
    for human, assistant in pairs:
        marked = human
        if random is not None and not turns:
            marked = random.choice((f"<image>\n{human}", f"{human}\n<image>"))
        turns.append({"from": "human", "value": marked})
        turns.append({"from": "gpt", "value": assistant})
    return turns
