"""GQA: an object by question, LAVIS's list, and the splits without answers."""

from pathlib import Path
from typing import Any

from ibtrain.data.records import Answer, Record
from tests.data.readers.harness import jpeg, prepared, raw_directory


def record(
    raw: Path, identity: str, question: str, answers: tuple[str, ...], **details: Any
) -> Record:
    return Record(
        dataset="gqa",
        task="visual_reasoning",
        id=identity,
        images=(jpeg(raw / f"images/{details['image_id']}.jpg"),),
        instructions=(f"Question: {question} Short answer:",),
        answers=tuple(Answer(answer) for answer in answers),
        form="visual_question_answering",
        plain=question,
        details=details,
    )


def test_the_official_object(tmp_path: Path):
    raw = raw_directory("gqa/official", tmp_path)
    records, quarantine, dropped = prepared("gqa", raw, "testdev")
    assert records == [
        record(
            raw,
            "201307251",
            "Is it overcast?",
            ("no",),
            image_id="n161313",
            question_type="weatherVerify",
            structural="verify",
            full_answer="No, it is clear.",
        ),
        record(
            raw,
            "201640614",
            "Wer trägt den Hut - links?",
            ("Mädchen",),
            image_id="n235859",
            question_type="relChooser",
            structural="choose",
            full_answer="Das Mädchen.",
        ),
    ]
    file = "testdev_balanced_questions.json"
    assert quarantine == [
        ("202225914", "no image n404404.jpg; looked in RAW/images, RAW"),
        (
            "202225916",
            f"{file}['202225916']: 'imageId' '../n161313' is no name of an image",
        ),
        (
            "202225917",
            f"{file}['202225917']: 'question' must be a string that is not empty, found a list",
        ),
        (f"{file}['202225918']", f"{file}['202225918']: expected an object, found 7"),
    ]
    assert dropped == {"no answer": 1}


def test_a_split_whose_answers_are_kept_back(tmp_path: Path):
    raw = raw_directory("gqa/official", tmp_path)
    assert prepared("gqa", raw, "test") == (
        [record(raw, "201971873", "Is the sky dark?", (), image_id="n161313")],
        [],
        {},
    )


def test_the_list_of_lavis(tmp_path: Path):
    raw = raw_directory("gqa/lavis", tmp_path)
    records, quarantine, dropped = prepared("gqa", raw, "testdev")
    assert records == [
        record(raw, "201307251", "Is it overcast?", ("no",), image_id="n161313"),
        record(
            raw,
            "201307252",
            "Is it clear?",
            ("yes",),
            image_id="n161313",
            full_answer="Yes, it is clear.",
        ),
    ]
    assert quarantine == [("201307253", "no image n404404.jpg; looked in RAW/images, RAW")]
    assert dropped == {"no answer": 1}


def test_no_key_of_types_is_needed(tmp_path: Path):
    raw = raw_directory("gqa/official", tmp_path)
    file = raw / "testdev_balanced_questions.json"
    file.write_text(file.read_text().replace('"detailed": "weatherVerify", ', ""))
    records, *_ = prepared("gqa", raw, "testdev")
    assert records[0].details.get("question_type") is None
    assert records[0].details["structural"] == "verify"
