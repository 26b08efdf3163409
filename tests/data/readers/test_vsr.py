"""VSR: statements that are true or false, line by line."""

from pathlib import Path

from ibtrain.data.records import Answer, Record
from tests.data.readers.harness import jpeg, prepared, raw_directory


def record(raw: Path, image: str, line: int, statement: str, answer: str, relation: str) -> Record:
    image_id = Path(image).stem
    return Record(
        dataset="vsr",
        task="visual_reasoning",
        id=f"{image_id}-{line}",
        images=(jpeg(raw / image),),
        instructions=(
            f'Based on the image, is this statement true or false? "{statement}" Answer:',
        ),
        answers=(Answer(answer),),
        form="statement",
        plain=statement,
        details={
            "image_id": image_id,
            "choices": ["false", "true"],
            "correct_choice": ["false", "true"].index(answer),
            "relation": relation,
        },
    )


def test_statements_are_true_or_false(tmp_path: Path):
    raw = raw_directory("vsr/official", tmp_path)
    records, quarantine, dropped = prepared("vsr", raw, "test")
    bear = "The teddy bear is in front of the person."
    umbrella = "The umbrella is “far away” from the café."
    image = "images/000000050403.jpg"
    in_coco = "trainval2017/train2017/000000401552.jpg"
    # Statements about one image stand together.
    assert sorted(records, key=lambda found: found.id) == [
        record(raw, image, 1, bear, "true", "in front of"),
        record(raw, image, 4, bear, "true", "in front of"),
        record(raw, in_coco, 2, umbrella, "false", "far away from"),
    ]
    assert [reason for _, reason in quarantine] == [
        "no image COCO image 404404; looked in "
        "RAW/images, RAW/trainval2017, RAW/../coco/images, RAW",
        "test.jsonl:6: 'label' is 2, there are 2 choices",
        "test.jsonl:7: not readable as JSON: Invalid control character at: line 1 column 53 "
        "(char 52)",
    ]
    assert dropped == {"no answer": 1}
