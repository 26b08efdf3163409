"""IconQA: a folder for each question, and LAVIS's list of them."""

from pathlib import Path

from ibtrain.data.records import Answer, Record
from tests.data.readers.harness import jpeg, prepared, raw_directory

LETTER = Record(
    dataset="iconqa",
    task="visual_reasoning",
    id="7",
    images=(),
    instructions=(
        "Question: What has been done to this letter? Options: (a) turn (b) slide (c) flip. "
        "Short answer:",
    ),
    answers=(Answer("slide"),),
    form="multiple_choice",
    plain="What has been done to this letter? (a) turn (b) slide (c) flip",
    details={
        "choices": ["turn", "slide", "flip"],
        "correct_choice": 1,
        "grade": "grade2",
        "label": "S",
    },
)


def with_image(record: Record, path: Path) -> Record:
    return Record(**{**vars(record), "images": (jpeg(path),)})


def test_a_folder_for_each_question(tmp_path: Path):
    raw = raw_directory("iconqa/official", tmp_path)
    records, quarantine, dropped = prepared("iconqa", raw, "test")
    folder = raw / "iconqa/test/choose_txt"
    assert records == [
        with_image(LETTER, folder / "7/image.png"),
        Record(
            dataset="iconqa",
            task="visual_reasoning",
            id="10",
            images=(jpeg(folder / "10/image.png"),),
            instructions=(
                "Question: Quelle heure est-il ? 🕒 Options: (a) 3:00 (b) 4:15. Short answer:",
            ),
            answers=(Answer("3:00"),),
            form="multiple_choice",
            plain="Quelle heure est-il ? 🕒 (a) 3:00 (b) 4:15",
            details={
                "choices": ["3:00", "4:15"],
                "correct_choice": 0,
                "grade": "grade1",
                "label": "S2",
            },
        ),
    ]
    assert quarantine == [
        ("9", "9/data.json: 'answer' is 2, there are 2 choices"),
        ("100", "100/data.json: 'choices' must be 2 to 26 strings that are not empty"),
        (
            "101",
            "101/data.json: not readable as JSON: Invalid control character at: line 1 column 23 "
            "(char 22)",
        ),
        ("103", "no image RAW/iconqa/test/choose_txt/103/image.png"),
        ("104", "104/data.json: it is missing or larger than 1048576 bytes"),
    ]
    assert dropped == {}


def test_the_list_of_lavis(tmp_path: Path):
    raw = raw_directory("iconqa/lavis", tmp_path)
    records, quarantine, dropped = prepared("iconqa", raw, "test")
    assert records == [with_image(LETTER, raw / "all_images/test_7.png")]
    assert [reason for _, reason in quarantine] == [
        "no image test_8.png; looked in RAW/images, RAW/all_images, RAW",
        "annotations_test.json[2]: 'choices' must be a list, found '12'",
    ]
    assert dropped == {"no answer": 1}
