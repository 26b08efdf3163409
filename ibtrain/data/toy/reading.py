"""TextCaps and TextVQA, which share images and the tokens read off them, and OCR-VQA.

    textvqa/TextCaps_0.1_{train,val}.json, textvqa/TextVQA_0.5.1_{val,test}.json
    textvqa/TextVQA_Rosetta_OCR_v0.2_{train,val,test}.json
    textvqa/{train,test}_images/*.jpg
    ocr_vqa/dataset.json, ocr_vqa/ocr_tokens.json, ocr_vqa/images/*.jpg

The word that is drawn is the token that the text reader found.
"""

from collections import Counter
from typing import Any

from ibtrain.data.toy.knowledge import MEANINGS
from ibtrain.data.toy.pictures import (
    Picture,
    ToyWriter,
    annotators_answers,
    balanced,
    write_json,
)
from ibtrain.data.toy.text import captions, questions, with_article
from ibtrain.data.toy.world import IMAGE_SIZE, Scene

_WORD_SHARE = 0.9  # of TextVQA's images; the text reader found nothing in the others
_GENRES = ("animal", "star", "tool")  # what OCR-VQA's titles name
_SPLITS = {"train": 1, "val": 2, "test": 3}  # OCR-VQA's numbers of them


def write(toy: ToyWriter) -> None:
    """Writes the three datasets."""
    sizes = {"train": max(1, toy.train_images // 6), "val": toy.few, "test": toy.few}
    for split, size in sizes.items():
        pictures = toy.draw(
            toy.folder("textvqa") / ("test_images" if split == "test" else "train_images"),
            f"textvqa-{split}",
            range(size),
            lambda number, split=split: f"{_SPLITS[split]}{number:015x}.jpg",  # type: ignore[misc]
            word_share=_WORD_SHARE,
        )
        _write_ocr(toy, split, pictures)
        if split != "test":
            _write_textcaps(toy, split, pictures)
        if split != "train":
            _write_textvqa(toy, split, pictures)
    _write_ocr_vqa(toy)


def _image_id(picture: Picture) -> str:
    return picture.file.removesuffix(".jpg")


def _tokens(scene: Scene) -> list[str]:
    return [] if scene.word is None else [scene.word.text]


def _image_fields(picture: Picture) -> dict[str, Any]:
    """What every file of TextVQA and TextCaps says of an image."""
    return {
        "image_id": _image_id(picture),
        "flickr_original_url": f"https://flickr.example/{picture.file}",
        "flickr_300k_url": f"https://flickr.example/300k/{picture.file}",
        "image_width": IMAGE_SIZE,
        "image_height": IMAGE_SIZE,
    }


def _write_ocr(toy: ToyWriter, split: str, pictures: list[Picture]) -> None:
    """Boxes are in shares of the image: the quadrant that the word stands in."""
    rows = []
    for picture in pictures:
        word = picture.scene.word
        found: list[dict[str, Any]] = []
        if word is not None:
            box = {
                "top_left_x": word.quadrant % 2 / 2,
                "top_left_y": word.quadrant // 2 / 2,
                "width": 0.5,
                "height": 0.5,
                "rotation": 0,
                "roll": 0,
                "pitch": 0,
                "yaw": 0,
            }
            found = [{"word": word.text, "bounding_box": box}]
        tokens = {"ocr_tokens": _tokens(picture.scene), "ocr_info": found}
        rows.append(_image_fields(picture) | tokens)
    head = {"dataset_type": split, "dataset_name": "textvqa", "dataset_version": "0.2"}
    path = toy.folder("textvqa") / f"TextVQA_Rosetta_OCR_v0.2_{split}.json"
    write_json(path, head | {"data": rows})


def _write_textcaps(toy: ToyWriter, split: str, pictures: list[Picture]) -> None:
    rows: list[dict[str, Any]] = []
    for picture in pictures:
        written = captions(picture.scene)
        words = [caption.replace(",", "").replace(":", "").split() for caption in written]
        for caption, tokens in zip(written, words, strict=True):
            rows.append(
                _image_fields(picture)
                | {
                    "caption_id": len(rows),
                    "caption_str": caption,
                    "caption_tokens": tokens,
                    "reference_strs": written,
                    "reference_tokens": words,
                    "image_classes": sorted({thing.shape for thing in picture.scene.objects}),
                    "image_name": _image_id(picture),
                    "image_path": f"train/{picture.file}",
                    "set_name": split,
                }
            )
        if split == "train":
            toy.said += written
    head = {"dataset_type": split, "dataset_name": "textcaps", "dataset_version": "0.1"}
    write_json(toy.folder("textcaps") / f"TextCaps_0.1_{split}.json", head | {"data": rows})
    toy.count("textcaps", split, len(rows))


def _write_textvqa(toy: ToyWriter, split: str, pictures: list[Picture]) -> None:
    used: Counter[str] = Counter()
    rows = []
    for picture in pictures:
        random = picture.random("textvqa")
        candidates = questions(picture.scene, random)
        about_text = [asked for asked in candidates if asked.kind == "word"]
        (question,) = balanced(about_text or candidates, used, 1)
        row = _image_fields(picture) | {
            "question_id": (1 + _SPLITS[split]) * 10_000 + picture.number,
            "question": question.question,
            "question_tokens": question.question.lower().removesuffix("?").split(),
            "image_classes": sorted({thing.shape for thing in picture.scene.objects}),
            "set_name": split,
        }
        if split != "test":
            row["answers"] = annotators_answers(question, random)
        rows.append(row)
    head = {"dataset_type": split, "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    write_json(toy.folder("textvqa") / f"TextVQA_0.5.1_{split}.json", head | {"data": rows})
    toy.count("textvqa", split, len(rows))


def _write_ocr_vqa(toy: ToyWriter) -> None:
    """Covers of books: the title is what is written, and the title tells the kind of book."""
    folder = toy.folder("ocr_vqa")
    sizes = {"train": max(1, toy.train_images // 3), "val": toy.few, "test": toy.few}
    books: dict[str, dict[str, Any]] = {}
    tokens = []
    for split, size in sizes.items():
        first = 10_000_000 * _SPLITS[split]
        covers = toy.draw(
            folder / "images",
            "ocr_vqa",
            range(first, first + size),
            lambda number: f"{number:010d}.jpg",
            word_share=1.0,
        )
        annotations = 0
        for cover in covers:
            assert cover.scene.word is not None  # every scene has one
            book = _book(cover, cover.scene.word.text)
            books[_image_id(cover)] = book | {"split": _SPLITS[split]}
            annotations += len(book["questions"])
            tokens.append({"image_id": _image_id(cover), "ocr_tokens": _tokens(cover.scene)})
            if split == "train":
                toy.said += book["questions"] + book["answers"]
        toy.count("ocr_vqa", split, annotations)
    write_json(folder / "dataset.json", books)
    write_json(folder / "ocr_tokens.json", {"data": tokens})


def _book(cover: Picture, title: str) -> dict[str, Any]:
    genre = MEANINGS[title]
    other = cover.random("genre").choice([name for name in _GENRES if name != genre])
    asked = {
        "What is the title of this book?": title,
        "What is the genre of this book?": genre,
        f"Is this a book about {with_article(genre)}?": "yes",
        f"Is this a book about {with_article(other)}?": "no",
    }
    return {
        "imageURL": f"https://images.example/{cover.file}",
        "questions": list(asked),
        "answers": list(asked.values()),
        "title": title,
        "authorName": "",
        "genre": genre,
    }
