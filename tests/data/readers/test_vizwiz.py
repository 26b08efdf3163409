"""VizWiz: ten annotators, of whom some say that there is no answer."""

from pathlib import Path

from ibtrain.data.records import Answer, Record
from tests.data.readers.harness import jpeg, prepared, raw_directory


def test_answers_weigh_as_many_as_gave_them(tmp_path: Path):
    raw = raw_directory("vizwiz/official", tmp_path)
    records, quarantine, dropped = prepared("vizwiz", raw, "val")
    again = records.pop(1)
    assert records == [
        Record(
            dataset="vizwiz",
            task="image_question_answering",
            id="VizWiz_val_00000000",
            images=(jpeg(raw / "val/VizWiz_val_00000000.jpg"),),
            instructions=(
                "Question: Ok. There is another picture I hope it is a better one. Short answer:",
            ),
            answers=(
                Answer("beans", 5.0),
                Answer("unanswerable", 2.0),
                Answer("Beans", 1.0),
                Answer("canned café", 1.0),
                Answer("unsuitable", 1.0),
            ),
            form="visual_question_answering",
            plain="Ok. There is another picture I hope it is a better one.",
            details={"question_type": "other", "answerable": 1},
        ),
        Record(
            dataset="vizwiz",
            task="image_question_answering",
            id="VizWiz_val_00000001",
            images=(jpeg(raw / "val/VizWiz_val_00000001.jpg"),),
            instructions=("Question: What is this? 📷 Short answer:",),
            answers=(Answer("unanswerable", 3.0),),
            form="visual_question_answering",
            plain="What is this? 📷",
            details={"question_type": "unanswerable", "answerable": 0},
        ),
    ]
    assert (again.id, again.plain) == ("VizWiz_val_00000000#2", "The same picture?")
    roots = "images, train, val, test, images/train, images/val, images/test"
    looked = ", ".join(f"RAW/{root}" for root in roots.split(", "))
    assert [reason for _, reason in quarantine] == [
        f"no image VizWiz_val_00000002.jpg; looked in {looked}, RAW",
        "val.json[5]: answers[0]: expected an object, found 'yes'",
    ]
    assert dropped == {"no answer": 1}


def test_the_answers_of_the_test_split_are_kept_on_a_server(tmp_path: Path):
    raw = raw_directory("vizwiz/official", tmp_path)
    assert prepared("vizwiz", raw, "test") == (
        [
            Record(
                dataset="vizwiz",
                task="image_question_answering",
                id="VizWiz_test_00000000",
                images=(jpeg(raw / "test/VizWiz_test_00000000.jpg"),),
                instructions=("Question: What is this product? Short answer:",),
                answers=(),
                form="visual_question_answering",
                plain="What is this product?",
                details={},
            )
        ],
        [],
        {},
    )
