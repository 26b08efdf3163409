"""TextVQA: questions with the tokens that were read in the image."""

from pathlib import Path

from ibtrain.data.records import Answer, Record
from tests.data.readers.harness import jpeg, prepared, raw_directory


def test_tokens_go_before_the_question(tmp_path: Path):
    raw = raw_directory("textvqa/official", tmp_path)
    records, quarantine, dropped = prepared("textvqa", raw, "val")
    tokens = "DAKOTA, DIGITAL, Single-Use Camera"
    assert records == [
        Record(
            dataset="textvqa",
            task="question_answering_with_reading",
            id="34602",
            images=(jpeg(raw / "train_images/003a8ae2ef43b901.jpg"),),
            instructions=(
                f"OCR tokens: {tokens}. Question: what is the brand of this camera? Short answer:",
            ),
            answers=(
                Answer("dakota", 4.0),
                Answer("dakota digital", 3.0),
                Answer("nous les gosses", 1.0),
                Answer("clos culombu", 1.0),
                Answer("Dakota", 1.0),
            ),
            form="question_answering_with_reading",
            plain=f"{tokens} what is the brand of this camera?",
            details={
                "image_id": "003a8ae2ef43b901",
                "ocr_tokens": ["DAKOTA", "DIGITAL", "Single-Use Camera"],
            },
        ),
        Record(
            dataset="textvqa",
            task="question_answering_with_reading",
            id="34603",
            images=(jpeg(raw / "train_images/0054c91397f2fe05.jpg"),),
            instructions=("Question: où est écrit “sortie” ? Short answer:",),
            answers=(Answer("left", 8.0), Answer("à gauche", 1.0)),
            form="visual_question_answering",
            plain="où est écrit “sortie” ?",
            details={"image_id": "0054c91397f2fe05", "ocr_tokens": []},
        ),
    ]
    file = "TextVQA_0.5.1_val.json"
    assert quarantine == [
        (
            "34604",
            "no image 0404040404040404.jpg; looked in "
            "RAW/train_images, RAW/test_images, RAW/images, RAW",
        ),
        (
            "34605",
            f"{file}[3]: image 00000000000000aa has no entry in TextVQA_Rosetta_OCR_v0.2_val.json",
        ),
        ("34607", f"{file}[5]: 'answers' must be a list of strings, holds 2008"),
    ]
    assert dropped == {"no answer": 1}


def test_the_test_split_has_no_answers(tmp_path: Path):
    raw = raw_directory("textvqa/official", tmp_path)
    tokens = [f"word{number}" for number in range(1, 31)]  # of 32
    assert prepared("textvqa", raw, "test") == (
        [
            Record(
                dataset="textvqa",
                task="question_answering_with_reading",
                id="39602",
                images=(jpeg(raw / "test_images/00685bc495504d61.jpg"),),
                instructions=(
                    f"OCR tokens: {', '.join(tokens)}. Question: what is written? Short answer:",
                ),
                answers=(),
                form="question_answering_with_reading",
                plain=f"{', '.join(tokens)} what is written?",
                details={"image_id": "00685bc495504d61", "ocr_tokens": tokens},
            )
        ],
        [],
        {},
    )
