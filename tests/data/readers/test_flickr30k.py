"""Flickr30K in Karpathy's file and in LAVIS's lists."""

from pathlib import Path

from ibtrain.data.records import Answer, Record
from tests.data.readers.harness import jpeg, prepared, raw_directory

ROOTS = "RAW/images, RAW/flickr30k-images, RAW/flickr30k_images, RAW"


def record(raw: Path, image: str, identity: str, *captions: str) -> Record:
    return Record(
        dataset="flickr30k",
        task="captioning",
        id=identity,
        images=(jpeg(raw / image),),
        instructions=("A short image description:",),
        answers=tuple(Answer(caption) for caption in captions),
        form="captioning",
        plain="",
        details={"image_id": identity.partition("-")[0].partition("#")[0]},
    )


def test_the_splits_of_karpathy(tmp_path: Path):
    raw = raw_directory("flickr30k/official", tmp_path)
    folder = "flickr30k-images"
    records, quarantine, dropped = prepared("flickr30k", raw, "test")
    assert records == [
        record(
            raw,
            f"{folder}/1000092795.jpg",
            "1000092795",
            "Two young guys with shaggy hair look at their hands.",
            "Deux garçons  dans un jardin 🌿",
        ),
        record(raw, f"{folder}/1000092795.jpg", "1000092795#2", "Two young guys again."),
    ]
    assert [reason for _, reason in quarantine] == [
        f"no image 1000268201.jpg; looked in {ROOTS}",
    ]
    assert dropped == {"no caption": 1}
    records, quarantine, dropped = prepared("flickr30k", raw, "train")
    image = f"{folder}/1000344755.jpg"
    assert records == [
        record(raw, image, "1000344755-0", "Someone in a blue shirt."),
        record(raw, image, "1000344755-1", "A man on a ladder."),
    ]
    assert (quarantine, dropped) == ([], {})
    records, quarantine, dropped = prepared("flickr30k", raw, "val")
    assert records == [
        record(raw, f"{folder}/1000092795.jpg", "1000092795", "Kept for validation.")
    ]
    assert (quarantine, dropped) == ([], {})


def test_the_lists_of_lavis(tmp_path: Path):
    raw = raw_directory("flickr30k/lavis", tmp_path)
    image = "images/flickr30k-images/1007129816.jpg"
    records, quarantine, dropped = prepared("flickr30k", raw, "test")
    assert records == [
        record(
            raw,
            image,
            "1007129816",
            "The man with pierced ears is wearing glasses.",
            "Un homme à lunettes",
        )
    ]
    assert [reason for _, reason in quarantine] == [
        f"no image flickr30k-images/1009434119.jpg; looked in {ROOTS}",
        "flickr30k_test.json[2]: 'caption' must be a list, found 'Not a list'",
        "the image path '/etc/passwd' leaves the image folder: it is not in RAW; write it as seen "
        "from there",
    ]
    assert dropped == {}
    records, quarantine, dropped = prepared("flickr30k", raw, "train")
    assert records == [
        record(raw, image, "1007129816-0", "One caption"),
        record(raw, image, "1007129816-1", "Another caption"),
    ]
    assert (quarantine, dropped) == ([], {"no caption": 1})
