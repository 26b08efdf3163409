"""COCO Caption, Web CapFilt, NoCaps and Flickr30K.

coco/annotations/coco_karpathy_{train,val,test}.json   LAVIS's lists
coco/annotations/dataset_coco.json                     Karpathy's own file
capfilt/annotation.json, capfilt/images/00000/*.jpg
nocaps/nocaps_val_4500_captions.json, nocaps/images/*.jpg
flickr30k/dataset_flickr30k.json, flickr30k/flickr30k-images/*.jpg
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ibtrain.data.toy.coco import CocoPictures
from ibtrain.data.toy.pictures import Picture, ToyWriter, write_json
from ibtrain.data.toy.text import captions

_IMAGES_PER_WEB_FOLDER = 10_000  # as img2dataset cuts its output
_HELD_OUT_PART = 3  # of NoCaps' images, every third is out of the domain that training has


def write(toy: ToyWriter, coco: CocoPictures) -> None:
    """Writes the four datasets; COCO's images are there already."""
    _write_coco(toy, coco)
    _write_web_capfilt(toy)
    _write_nocaps(toy)
    _write_flickr30k(toy)


def _write_coco(toy: ToyWriter, coco: CocoPictures) -> None:
    folder = toy.folder("coco_caption") / "annotations"
    half = len(coco.val) // 2
    parts = {"train": coco.train, "val": coco.val[:half], "test": coco.val[half:]}
    toy.said += [caption for picture in coco.train for caption in captions(picture.scene)]
    rows: list[dict[str, Any]] = []
    for split, pictures in parts.items():
        if split == "train":
            rows = [
                {"image": p.file, "caption": caption, "image_id": f"coco_{p.number}"}
                for p in pictures
                for caption in captions(p.scene)
            ]
        else:
            rows = [{"image": p.file, "caption": captions(p.scene)} for p in pictures]
        write_json(folder / f"coco_karpathy_{split}.json", rows)
        toy.count("coco_caption", split, len(rows))
    karpathy = _karpathy_images(parts)
    for entry, picture in zip(karpathy, [p for part in parts.values() for p in part], strict=True):
        entry["filepath"] = picture.file.partition("/")[0]
        entry["cocoid"] = picture.number
    write_json(folder / "dataset_coco.json", {"images": karpathy, "dataset": "coco"})


def _karpathy_images(parts: Mapping[str, Sequence[Picture]]) -> list[dict[str, Any]]:
    """The entries of a Karpathy file, numbered through over all splits."""
    images: list[dict[str, Any]] = []
    sentence_id = 0
    for split, pictures in parts.items():
        for picture in pictures:
            sentences = []
            for caption in captions(picture.scene):
                words = caption.replace(",", "").replace(":", "").split()
                sentences.append(
                    {"raw": caption, "tokens": words, "sentid": sentence_id, "imgid": len(images)}
                )
                sentence_id += 1
            images.append(
                {
                    "filename": picture.file.rpartition("/")[2],
                    "imgid": len(images),
                    "split": split,
                    "sentids": [sentence["sentid"] for sentence in sentences],
                    "sentences": sentences,
                }
            )
    return images


def _write_web_capfilt(toy: ToyWriter) -> None:
    """One caption to each image, as the captioner of BLIP gave it."""
    folder = toy.folder("web_capfilt")
    pictures = toy.draw(
        folder / "images",
        "web",
        range(max(1, toy.train_images // 3)),
        lambda number: f"{number // _IMAGES_PER_WEB_FOLDER:05d}/{number:09d}.jpg",
    )
    rows = [
        {
            "image": picture.file,
            "caption": picture.random("caption").choice(captions(picture.scene)),
            "url": f"https://web.example/{picture.number}.jpg",
        }
        for picture in pictures
    ]
    write_json(folder / "annotation.json", rows)
    toy.count("web_capfilt", "train", len(rows))


def _write_nocaps(toy: ToyWriter) -> None:
    """Ten captions to each image; the images with held-out pairs are its "out-domain"."""
    folder = toy.folder("nocaps")

    def name(number: int) -> str:
        return f"{number:016x}.jpg"

    numbers = range(toy.few)
    near = toy.draw(folder / "images", "nocaps", [n for n in numbers if n % _HELD_OUT_PART], name)
    out = toy.draw(
        folder / "images",
        "nocaps",
        [n for n in numbers if n % _HELD_OUT_PART == 0],
        name,
        held_out=True,
    )
    images, annotations = [], []
    for picture in sorted(near + out, key=lambda picture: picture.number):
        images.append(
            {
                "id": picture.number,
                "open_images_id": picture.file.removesuffix(".jpg"),
                "file_name": picture.file,
                "coco_url": f"https://s3.amazonaws.com/nocaps/val/{picture.file}",
                "width": 48,
                "height": 48,
                "license": 0,
                "date_captured": "2018-11-06 11:04:33",
                "domain": "out-domain" if picture.scene.held_out else "in-domain",
            }
        )
        annotations += [
            {"id": 10 * picture.number + index, "image_id": picture.number, "caption": caption}
            for index, caption in enumerate(captions(picture.scene, count=10))
        ]
    content = {
        "info": {"description": "toy world", "version": "0.1", "year": 2018},
        "licenses": [],
        "images": images,
        "annotations": annotations,
    }
    write_json(folder / "nocaps_val_4500_captions.json", content)
    toy.count("nocaps", "val", len(images))


def _write_flickr30k(toy: ToyWriter) -> None:
    folder = toy.folder("flickr30k")
    parts = {
        split: toy.draw(
            folder / "flickr30k-images",
            f"flickr30k-{split}",
            range(first, first + toy.few),
            lambda number: f"{number}.jpg",
        )
        for split, first in (("train", 1_000_000), ("val", 2_000_000), ("test", 3_000_000))
    }
    images = _karpathy_images(parts)
    write_json(folder / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    for split, pictures in parts.items():
        annotations = 5 if split == "train" else 1
        toy.count("flickr30k", split, annotations * len(pictures))
