"""COCO's images, which its captions, the question sets made on it and LLaVA share.

coco/images/{train2014,val2014}/COCO_{train2014,val2014}_000000000001.jpg
"""

from dataclasses import dataclass

from ibtrain.data.toy.pictures import Picture, ToyWriter

_FIRST_VAL_NUMBER = 500_000  # COCO's numbers are unique over its splits


@dataclass(frozen=True)
class CocoPictures:
    """The pictures of train2014 and of val2014, `file` being FOLDER/NAME."""

    train: list[Picture]
    val: list[Picture]

    def of(self, split: str) -> list[Picture]:
        """The pictures of "train" or "val"."""
        return self.train if split == "train" else self.val


def draw_coco(toy: ToyWriter) -> CocoPictures:
    """Draws both splits."""
    folder = toy.folder("coco_caption") / "images"

    def draw(split: str, first: int, count: int) -> list[Picture]:
        year = f"{split}2014"
        numbers = range(first, first + count)
        return toy.draw(folder, split, numbers, lambda n: f"{year}/COCO_{year}_{n:012d}.jpg")

    pictures = CocoPictures(
        draw("train", 1, toy.train_images), draw("val", _FIRST_VAL_NUMBER, toy.few)
    )
    toy.counts["coco_images"] = len(pictures.train) + len(pictures.val)
    return pictures
