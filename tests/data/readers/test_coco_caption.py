"""COCO Caption: COCO's own files, Karpathy's split, and LAVIS's lists of it."""

from pathlib import Path

from ibtrain.data.records import Answer, Record
from tests.data.readers.harness import instructions, jpeg, prepared, raw_directory

TRAIN = "images/train2014/COCO_train2014_"


def record(image: Path, identity: str, *captions: str) -> Record:
    return Record(
        dataset="coco_caption",
        task="captioning",
        id=identity,
        images=(jpeg(image),),
        instructions=instructions("captioning"),
        answers=tuple(Answer(caption) for caption in captions),
        form="captioning",
        plain="",
        details={"image_id": identity.partition("-")[0]},
    )


def test_the_files_of_coco(tmp_path: Path):
    raw = raw_directory("coco_caption/official", tmp_path)
    first, second = raw / f"{TRAIN}000000057870.jpg", raw / f"{TRAIN}000000384029.jpg"
    assert prepared("coco_caption", raw, "train") == (
        [
            record(first, "57870-0", "A restaurant has modern wooden tables and chairs."),
            record(first, "57870-1", "A long table with plates"),  # images are kept together
            record(second, "384029-0", "Un café, 咖啡 and {braces}"),
        ],
        [
            ("69675", "no image COCO image 222016; looked in RAW/images, RAW/../coco/images, RAW"),
            (
                "787980",
                "captions_train2014.json[5]: 'caption' must be a string that is not empty, "
                "found a list",
            ),
        ],
        {"no caption": 1},
    )
    val = raw / "images/val2014"
    assert prepared("coco_caption", raw, "val2014") == (
        [
            record(
                val / "COCO_val2014_000000203564.jpg",
                "203564",
                "A bicycle replica with a clock as the front wheel.",
            ),
            record(
                val / "COCO_val2014_000000179765.jpg",
                "179765",
                "A black Honda motorcycle parked in front of a garage.",
                "A Honda motorcycle parked in a grass driveway",
            ),
        ],
        [],
        {},
    )


def test_the_split_of_karpathy(tmp_path: Path):
    raw = raw_directory("coco_caption/karpathy", tmp_path)
    coco = tmp_path / "coco"
    first = coco / f"{TRAIN}000000057870.jpg"
    assert prepared("coco_caption", raw, "train") == (
        [
            record(first, "57870-0", "Tische und Stühle"),
            record(first, "57870-1", "A long table"),
            record(first, "57870-0#2", "Said again"),  # its id came before
            record(
                coco / "images/val2014/COCO_val2014_000000203564.jpg",
                "203564-0",
                "A clock with a bicycle",
            ),
        ],
        [("1", "the image path '../secret.jpg' leaves the image folder")],
        {"no caption": 1},
    )
    assert prepared("coco_caption", raw, "test") == (
        [
            record(
                coco / "images/val2014/COCO_val2014_000000391895.jpg",
                "391895",
                "A man with a red helmet on a small moped.",
                "Man riding a motor bike.",
            )
        ],
        [],
        {},
    )


def test_the_lists_of_lavis(tmp_path: Path):
    raw = raw_directory("coco_caption/lavis", tmp_path)
    image = raw / "images/val2014/COCO_val2014_000000522418.jpg"
    place = "coco_karpathy_train.json"
    assert prepared("coco_caption", raw, "train") == (
        [
            record(image, "522418-0", "A woman wearing a net on her head cutting a cake."),
            record(image, "522418-1", "Une femme coupe un gâteau"),
        ],
        [
            (
                "coco_184613",
                "no image val2014/COCO_val2014_000000184613.jpg; looked in RAW/images, "
                "RAW/../coco/images, RAW",
            ),
            ("coco_1", f"{place}[5]: 'image' is missing"),
        ],
        {"no caption": 2},
    )
    assert prepared("coco_caption", raw, "val") == (
        [record(image, "522418", "A woman cutting a cake", "A chef 👩‍🍳")],
        [],
        {"no caption": 1},
    )
    assert prepared("coco_caption", raw, "test") == (
        [record(image, "522418", "A woman cuts a cake", "A cake is cut")],
        [],
        {"no caption": 1},
    )
