"""NoCaps: references by image, domains; what has no captions."""

from pathlib import Path

from ibtrain.data.records import Answer, Record
from tests.data.readers.harness import jpeg, prepared, raw_directory

PROMPT = ("A short image description:",)
ROOTS = "RAW/images, RAW/images/val, RAW/images/test, RAW/val, RAW/test, RAW"


def test_an_image_with_its_references_and_its_domain(tmp_path: Path):
    raw = raw_directory("nocaps/official", tmp_path)
    records, quarantine, dropped = prepared("nocaps", raw, "val")
    assert records == [
        Record(
            dataset="nocaps",
            task="captioning",
            id="0",
            images=(jpeg(raw / "images/0013ea2087020901.jpg"),),
            instructions=PROMPT,
            answers=(
                Answer("A baby is standing in front of a house."),
                Answer("Un bébé devant une maison 🏠"),
                Answer("A baby is standing in front of a house."),
            ),
            form="captioning",
            plain="",
            details={
                "image_id": "0",
                "open_images_id": "0013ea2087020901",
                "domain": "in-domain",
            },
        ),
        Record(
            dataset="nocaps",
            task="captioning",
            id="1",
            images=(jpeg(raw / "images/val/00b6e7ac1c4b1c5a.jpg"),),
            instructions=PROMPT,
            answers=(Answer("Two otters in the water"),),
            form="captioning",
            plain="",
            details={
                "image_id": "1",
                "open_images_id": "00b6e7ac1c4b1c5a",
                "domain": "near-domain",
            },
        ),
    ]
    place = "nocaps_val_4500_captions.json[5]"
    assert quarantine == [
        (place, f"{place}: 'caption' must be a string that is not empty, found 7"),
        ("3", f"no image missing000000000.jpg; looked in {ROOTS}"),
        ("5", "the image path '../0013ea2087020901.jpg' leaves the image folder"),
    ]
    assert dropped == {"no caption": 1, "duplicate": 1}


def test_the_test_split_has_no_captions(tmp_path: Path):
    raw = raw_directory("nocaps/official", tmp_path)
    records, quarantine, dropped = prepared("nocaps", raw, "test")
    assert records == [
        Record(
            dataset="nocaps",
            task="captioning",
            id="4500",
            images=(jpeg(raw / "images/test/80155d58d0ee19bd.jpg"),),
            instructions=PROMPT,
            answers=(),
            form="captioning",
            plain="",
            details={"image_id": "4500", "open_images_id": "80155d58d0ee19bd"},
        )
    ]
    assert quarantine == [("4501", f"no image missing000000001.jpg; looked in {ROOTS}")]
    assert dropped == {}


def test_the_list_of_lavis(tmp_path: Path):
    raw = raw_directory("nocaps/lavis", tmp_path)
    records, quarantine, dropped = prepared("nocaps", raw, "val")
    assert records == [
        Record(
            dataset="nocaps",
            task="captioning",
            id="0",
            images=(jpeg(raw / "images/val/0013ea2087020901.jpg"),),
            instructions=PROMPT,
            answers=(),
            form="captioning",
            plain="",
            details={"image_id": "0"},
        )
    ]
    assert [reason for _, reason in quarantine] == [
        f"no image val/missing000000000.jpg; looked in {ROOTS}",
        "nocaps_val.json[2]: 'img_id' must be a whole number or a string that is not empty, "
        "found True",
    ]
    assert dropped == {}
