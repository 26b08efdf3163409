"""What every layout is written with: scenes drawn into their folders, files, annotators."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from ibtrain.data.toy.places import PLACES
from ibtrain.data.toy.text import Question
from ibtrain.data.toy.world import WORD_SHARE, Scene, render, sample_scene

ANNOTATORS = 10
_MINORITY = 3  # of the annotators, who give the other answer where there are two


@dataclass(frozen=True)
class Picture:
    """A scene that lies on disk as an image, `file` being its path below the image folder."""

    number: int
    scene: Scene
    file: str
    seed: str

    def random(self, purpose: str) -> Random:
        """A generator of its own for everything that is said about the picture."""
        return Random(f"{self.seed}/{purpose}")


@dataclass
class ToyWriter:
    """The toy that is being written: where, how much, and what has been written so far."""

    root: Path
    seed: int
    train_images: int
    test_images: int
    counts: dict[str, int] = field(default_factory=dict)
    """Annotations by DATASET_SPLIT, in the order of writing."""
    said: list[str] = field(default_factory=list)
    """The text of everything trained on, for the tokenizers."""

    @property
    def few(self) -> int:
        """Images of a split that is neither COCO's train nor one of GQA's."""
        return max(4, self.test_images // 3)

    def folder(self, dataset: str) -> Path:
        """The raw folder of a dataset, made if it is not there."""
        path = self.root / PLACES[dataset].folder
        path.mkdir(parents=True, exist_ok=True)
        return path

    def random(self, purpose: str) -> Random:
        """A generator of its own for what is no numbered picture."""
        return Random(f"{purpose}/{self.seed}")

    def count(self, dataset: str, split: str, annotations: int) -> None:
        """Notes how many annotations of a split were written."""
        self.counts[f"{dataset}_{split}"] = annotations

    def draw(
        self,
        folder: Path,
        split: str,
        numbers: Iterable[int],
        name: Callable[[int], str],
        *,
        held_out: bool = False,
        word_share: float = WORD_SHARE,
    ) -> list[Picture]:
        """Draws a picture for each number.

        Args:
            folder: the image folder.
            split: what sets these scenes apart from others of the same numbers.
            numbers: of the pictures, each once.
            name: the path of a number's image below `folder`, .jpg or .png.
            held_out: whether every scene shows a held-out pair.
            word_share: of the scenes have a word.
        """
        pictures = []
        for number in numbers:
            seed = f"{split}/{self.seed}/{number}"
            random = Random(seed)
            scene = sample_scene(random, held_out=held_out, word_share=word_share)
            picture = Picture(number, scene, name(number), seed)
            save_image(folder / picture.file, scene, random)
            pictures.append(picture)
        return pictures


def save_image(path: Path, scene: Scene, random: Random) -> None:
    """Renders a scene to a JPEG or PNG file, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = render(scene, random)
    if path.suffix == ".jpg":
        image.save(path, quality=95, subsampling=0)
    else:
        image.save(path)


def write_json(path: Path, content: Any) -> None:
    """Writes one JSON document, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Writes one JSON document a line, making the file's folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(lines, encoding="utf-8")


def balanced(candidates: Sequence[Question], used: Counter[str], limit: int) -> list[Question]:
    """Up to `limit` different questions, those of the kinds asked least so far first."""
    different = {candidate.question: candidate for candidate in candidates}
    chosen = sorted(different.values(), key=lambda candidate: used[candidate.kind])[:limit]
    used.update(candidate.kind for candidate in chosen)
    return chosen


def annotators_answers(asked: Question, random: Random, count: int = ANNOTATORS) -> list[str]:
    """What each annotator answers; where there is another true answer, some give that one."""
    if asked.also is None:
        return [asked.answer] * count
    minority = round(count * _MINORITY / ANNOTATORS)
    answers = [asked.answer] * (count - minority) + [asked.also] * minority
    random.shuffle(answers)
    return answers
