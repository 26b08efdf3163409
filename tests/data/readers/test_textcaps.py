"""TextCaps: each caption for training, an image with its references otherwise; tokens shown."""

from pathlib import Path

from ibtrain.data.records import Answer, Record
from tests.data.readers.harness import instructions, jpeg, prepared, raw_directory


def record(image: Path, identity: str, captions: tuple[str, ...], tokens: list[str]) -> Record:
    shown = ", ".join(tokens)
    form = "captioning_with_reading" if tokens else "captioning"
    return Record(
        dataset="textcaps",
        task="captioning_with_reading",
        id=identity,
        images=(jpeg(image),),
        instructions=instructions(form, ocr_tokens=shown) if tokens else instructions(form),
        answers=tuple(Answer(caption) for caption in captions),
        form=form,
        plain=shown,
        details={"image_id": image.stem, "ocr_tokens": tokens},
    )


def test_each_caption_for_training(tmp_path: Path):
    raw = raw_directory("textcaps/official", tmp_path)
    bottle = raw / "train_images/0054c91397f2fe05.jpg"
    wall = raw / "train_images/005635e119b9f32f.jpg"
    read = ["CHÂTEAU", "2001", "{vin} rouge"]
    records, quarantine, dropped = prepared("textcaps", raw, "train")
    assert records == [
        record(bottle, "0054c91397f2fe05-0", ("A bottle of Château, 2001.",), read),
        record(bottle, "0054c91397f2fe05-1", ("Wine",), read),
        record(wall, "005635e119b9f32f-0", ("A blank wall",), []),
    ]
    assert records[0].instructions[:2] == (
        "OCR tokens: CHÂTEAU, 2001, {vin} rouge. A short image description:",
        "OCR tokens: CHÂTEAU, 2001, {vin} rouge. A short image caption:",
    )
    assert quarantine == [
        (
            "00a8fdff1b1aec5b",
            "TextCaps_0.1_train.json[4]: image 00a8fdff1b1aec5b has no entry in "
            "TextVQA_Rosetta_OCR_v0.2_train.json",
        ),
        (
            "00b02c2ad3b0f6a1",
            "no image 00b02c2ad3b0f6a1.jpg; looked in RAW/train_images, RAW/test_images, "
            "RAW/images, RAW",
        ),
    ]
    assert dropped == {"no caption": 1}


def test_an_image_with_its_references_otherwise(tmp_path: Path):
    raw = raw_directory("textcaps/official", tmp_path)
    sign = raw / "train_images/004a94137b6f8d71.jpg"
    shown = [f"t{number}" for number in range(1, 31)]  # of 32
    assert prepared("textcaps", raw, "val") == (
        [record(sign, "004a94137b6f8d71", ("A sign says stop", "Arrêt"), shown)],
        [],
        {},
    )
    kept = raw / "test_images/00c359f294f7dcd9.jpg"
    assert prepared("textcaps", raw, "test") == (
        [record(kept, "00c359f294f7dcd9", (), ["EXIT"])],
        [],
        {},
    )
