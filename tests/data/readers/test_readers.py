"""Hand-written annotations in the official layouts, with the examples they give in full."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ibtrain.data import catalog, readers
from ibtrain.data.readers import Rejected
from ibtrain.data.records import Answer, Example

WriteJson = Callable[[Path, Any], None]


def read(raw: Path, dataset: str, split: str) -> list[Example | Rejected]:
    return list(readers.read(raw, split, catalog.get(dataset)))


def train_image(coco: Path, number: int) -> Path:
    return coco / f"images/train2014/COCO_train2014_{number:012d}.jpg"


def test_captions_of_lavis(coco: Path, write_json: WriteJson):
    rows = [
        {"image": f"train2014/COCO_train2014_{number:012d}.jpg", "caption": text, "image_id": "x"}
        for number, text in ((1, "A café.\n"), (2, "Two dogs"), (1, "A bar."), (3, "Gone"))
    ]
    rows += [{**rows[0], "caption": 5}, {**rows[0], "image": "../../etc/x.jpg"}]
    rows += [{**rows[0], "caption": " "}]
    write_json(coco / "annotations/coco_karpathy_train.json", rows)

    def example(number: int, index: int, text: str) -> Example:
        return Example(
            dataset="coco_caption",
            task="captioning",
            form="captioning",
            id=f"{number}-{index}",
            image=train_image(coco, number),
            answers=(Answer(text, 1.0),),
            details={"image_id": str(number)},
        )

    found = read(coco, "coco_caption", "train")
    assert found[:3] == [
        example(1, 0, "A café."),
        example(2, 0, "Two dogs"),
        example(1, 1, "A bar."),
    ]
    reasons = [item.reason for item in found[3:] if isinstance(item, Rejected) and item.bad]
    assert len(reasons) == 3
    assert "no image train2014/COCO_train2014_000000000003.jpg" in reasons[0]
    assert "coco_karpathy_train.json[4]: 'caption' must be a string" in reasons[1]
    assert "leaves the image folder" in reasons[2]
    assert found[-1] == Rejected("x", "no caption", bad=False)


def test_captions_of_karpathy(coco: Path, write_json: WriteJson):
    def image(folder: str, number: int, split: str, *texts: str) -> dict[str, Any]:
        return {
            "filepath": folder,
            "filename": f"COCO_{folder}_{number:012d}.jpg",
            "cocoid": number,
            "split": split,
            "sentences": [{"raw": text, "tokens": [], "sentid": 1, "imgid": 1} for text in texts],
        }

    images = [
        image("train2014", 1, "train", "One", " "),
        image("val2014", 7, "restval", "Rest", "More"),
        image("train2014", 2, "test", "First", "Second"),
        image("train2014", 2, "train"),
    ]
    write_json(coco / "dataset_coco.json", {"images": images, "dataset": "coco"})
    train = read(coco, "coco_caption", "train")
    assert [(item.id, item.answers) for item in train if isinstance(item, Example)] == [
        ("1-0", (Answer("One"),)),
        ("7-0", (Answer("Rest"),)),
        ("7-1", (Answer("More"),)),
    ]
    assert train[3] == Rejected("2", "no caption", bad=False)
    assert read(coco, "coco_caption", "test") == [
        Example(
            dataset="coco_caption",
            task="captioning",
            form="captioning",
            id="2",
            image=train_image(coco, 2),
            answers=(Answer("First"), Answer("Second")),
            details={"image_id": "2"},
        )
    ]


def vqa_files(raw: Path, write_json: WriteJson, questions: list[Any], answers: list[Any]) -> None:
    write_json(raw / "v2_OpenEnded_mscoco_train2014_questions.json", {"questions": questions})
    write_json(raw / "v2_mscoco_train2014_annotations.json", {"annotations": answers})


def annotation(question_id: int, *answers: Any) -> dict[str, Any]:
    return {
        "question_id": question_id,
        "image_id": 1,
        "question_type": "what",
        "answer_type": "other",
        "multiple_choice_answer": "x",
        "answers": [
            {"answer": text, "answer_confidence": "yes", "answer_id": number}
            for number, text in enumerate(answers, start=1)
        ],
    }


def test_vqav2_keeps_how_many_annotators_gave_an_answer(coco: Path, write_json: WriteJson):
    raw = coco.parent / "vqav2"
    questions = [
        {"image_id": 1, "question": " What is it? ", "question_id": 10},
        {"image_id": 2, "question": "Où?", "question_id": 11},
        {"image_id": 9, "question": "Gone?", "question_id": 12},
        {"image_id": 1, "question": "Unanswered?", "question_id": 13},
        {"image_id": 1, "question": "Unknown?", "question_id": 14},
        {"image_id": "x", "question": "Where?", "question_id": 10},
        {"image_id": 1, "question": None, "question_id": 10},
        ["no", "object"],
    ]
    ten = ["net"] * 6 + ["mesh"] * 3 + ["Net "]
    answers = [
        annotation(10, *ten),
        annotation(11, *["là"] * 9, ""),
        annotation(12, "a"),
        annotation(13, "", " "),
        "no object",
    ]
    vqa_files(raw, write_json, questions, answers)
    found = read(raw, "vqav2", "train")
    assert found[0] == Example(
        dataset="vqav2",
        task="image_question_answering",
        form="visual_question_answering",
        id="10",
        image=train_image(coco, 1),
        answers=(Answer("net", 6.0), Answer("mesh", 3.0), Answer("Net", 1.0)),
        slots={"question": "What is it?"},
        details={"question_type": "what", "answer_type": "other"},
    )
    assert isinstance(found[1], Example)
    assert found[1].answers == (Answer("là", 9.0),) and found[1].slots == {"question": "Où?"}
    rest = [item for item in found[2:] if isinstance(item, Rejected)]
    place = "v2_OpenEnded_mscoco_train2014_questions.json[7]"
    unread = "v2_mscoco_train2014_annotations.json[4]"
    assert [item.id for item in rest] == ["12", "13", "14", "10", "10", place, unread]
    assert [item.bad for item in rest] == [True, False, *[True] * 5]
    assert "no image COCO image 9" in rest[0].reason
    assert rest[1].reason == "no answer"
    assert "has no entry in v2_mscoco_train2014_annotations.json" in rest[2].reason
    assert "'x' is no COCO image number" in rest[3].reason
    assert "'question' must be a string that is not empty, found null" in rest[4].reason


def test_aokvqa_gives_a_direct_and_a_choice_example(coco: Path, write_json: WriteJson):
    row = {
        "split": "train",
        "image_id": 2,
        "question_id": "q1",
        "question": "What is worn?",
        "choices": ["hat", "red shoe", "tie", "bag"],
        "correct_choice_idx": 1,
        "direct_answers": ["shoe"] * 7 + ["boot"] * 3,
        "difficult_direct_answer": False,
        "rationales": ["because"],
    }
    bad = {**row, "question_id": "q2", "correct_choice_idx": 4, "direct_answers": []}
    write_json(coco.parent / "aokvqa/aokvqa_v1p0_train.json", [row, bad])
    found = read(coco.parent / "aokvqa", "aokvqa", "train")
    assert found[:2] == [
        Example(
            dataset="aokvqa",
            task="knowledge_question_answering",
            form="visual_question_answering",
            id="q1-direct",
            image=train_image(coco, 2),
            answers=(Answer("shoe", 7.0), Answer("boot", 3.0)),
            slots={"question": "What is worn?"},
            details={"difficult_direct_answer": False},
        ),
        Example(
            dataset="aokvqa",
            task="knowledge_question_answering",
            form="multiple_choice",
            id="q1-choice",
            image=train_image(coco, 2),
            answers=(Answer("red shoe", 1.0),),
            slots={
                "question": "What is worn?",
                "options": "(a) hat (b) red shoe (c) tie (d) bag",
            },
            details={"choices": ["hat", "red shoe", "tie", "bag"], "correct_choice": 1},
        ),
    ]
    assert found[2] == Rejected("q2", "no answer", bad=False)
    assert isinstance(found[3], Rejected) and "'correct_choice_idx' is 4" in found[3].reason


def test_a_conversation_without_an_image_is_text_alone(coco: Path, write_json: WriteJson):
    said = [{"from": "human", "value": "Two and two?"}, {"from": "gpt", "value": "Four."}]
    write_json(coco.parent / "text/conversations.json", [{"id": "t", "conversations": said}])
    assert read(coco.parent / "text", "toy_text", "train") == [
        Example(
            dataset="toy_text",
            task="text",
            id="t-0",
            image=None,
            answers=(Answer("Four."),),
            instructions=("Two and two?",),
            details={"turn": 0},
        )
    ]


def test_conversations_keep_every_turn_with_its_history(coco: Path, write_json: WriteJson):
    def turn(speaker: str, text: Any) -> dict[str, Any]:
        return {"from": speaker, "value": text}

    talk = [
        turn("human", "What IS this?\n<image>"),
        turn("gpt", "A *Cat*. " + "long " * 80),
        turn("human", "Sure?"),
        turn("gpt", "Yes!"),
    ]
    rows = [
        {"id": "a", "image": "000000000001.jpg", "conversations": talk},
        {"id": "b", "image": "000000000001.jpg", "conversations": [*talk[:3], talk[2], talk[3]]},
        {"id": "c", "image": "000000000001.jpg", "conversations": [talk[0], talk[1], talk[1]]},
        {"id": "d", "image": "000000000001.jpg", "conversations": []},
        {"id": "e", "image": "000000000001.jpg", "conversations": "text"},
        {"id": "f", "image": "000000000404.jpg", "conversations": talk},
        {
            "id": "g",
            "image": "000000000001.jpg",
            "conversations": [turn("human", "<image>"), talk[1]],
        },
    ]
    write_json(coco.parent / "llava/conversation_58k.json", rows)
    found = read(coco.parent / "llava", "llava_conversation", "train")

    def example(index: int, instruction: str, answer: str) -> Example:
        return Example(
            dataset="llava_conversation",
            task="llava_instruct",
            id=f"a-{index}",
            image=train_image(coco, 1),
            answers=(Answer(answer),),
            instructions=(instruction,),
            details={"turn": index},
        )

    first = "A *Cat*. " + "long " * 80
    assert found[:2] == [
        example(0, "What IS this?", first),
        example(1, f"What IS this?\n{first}\nSure?", "Yes!"),
    ]
    rest = [(item.id, item.bad) for item in found[2:] if isinstance(item, Rejected)]
    assert rest == [(name, name != "d") for name in "bcdefg"]


def test_gqa_is_keyed_by_question(coco: Path, write_json: WriteJson):
    raw = coco.parent / "gqa"
    (raw / "images").mkdir(parents=True)
    (raw / "images/n1.jpg").write_bytes(b"")
    row = {
        "question": "Is it red?",
        "imageId": "n1",
        "answer": "yes",
        "fullAnswer": "Yes, it is.",
        "isBalanced": True,
        "types": {"detailed": "existAttr", "semantic": "attr", "structural": "verify"},
    }
    rows = {
        "201": row,
        "202": {**row, "imageId": "../n1"},
        "203": {key: row[key] for key in ("question", "imageId")},
        "204": {**row, "types": []},
        "205": 7,
    }
    write_json(raw / "testdev_balanced_questions.json", rows)
    found = read(raw, "gqa", "testdev")
    assert found[0] == Example(
        dataset="gqa",
        task="visual_reasoning",
        form="visual_question_answering",
        id="201",
        image=raw / "images/n1.jpg",
        answers=(Answer("yes", 1.0),),
        slots={"question": "Is it red?"},
        details={
            "image_id": "n1",
            "question_type": "existAttr",
            "structural": "verify",
            "full_answer": "Yes, it is.",
        },
    )
    # What only a report uses is optional.
    without = found.pop(3)
    assert isinstance(without, Example) and without.id == "204"
    assert without.details == {"image_id": "n1", "full_answer": "Yes, it is."}
    rest = [(item.id, item.bad) for item in found[1:] if isinstance(item, Rejected)]
    assert rest == [
        ("202", True),
        ("203", False),
        ("testdev_balanced_questions.json['205']", True),
    ]


def test_what_is_missing_is_named_with_the_remedy(tmp_path: Path):
    with pytest.raises(ValueError, match="is not there"):
        read(tmp_path / "none", "vqav2", "train")
    with pytest.raises(ValueError, match=r"annotations.json, .*there or in .*visualqa.org"):
        read(tmp_path, "vqav2", "train")
    with pytest.raises(ValueError, match="no split 'tset'; there are train, val"):
        read(tmp_path, "vqav2", "tset")


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, '"\\ud800"', "5", "9" * 5000, "{}", "null", "\udcff"]
)
@pytest.mark.parametrize(
    ("dataset", "names"),
    [
        ("coco_caption", ["coco_karpathy_train.json"]),
        ("coco_caption", ["dataset_coco.json"]),
        (
            "vqav2",
            [
                "v2_OpenEnded_mscoco_train2014_questions.json",
                "v2_mscoco_train2014_annotations.json",
            ],
        ),
        ("aokvqa", ["aokvqa_v1p0_train.json"]),
        ("llava_conversation", ["conversation_58k.json"]),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, dataset: str, names: list[str], text: str):
    for name in names:
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"\.json"):
        read(tmp_path, dataset, "train")


def test_half_a_surrogate_pair_is_refused(coco: Path, write_json: WriteJson):
    questions = [{"image_id": 1, "question": "\ud800?", "question_id": 10}]
    vqa_files(coco.parent / "vqav2", write_json, questions, [annotation(10, "a")])
    (found,) = read(coco.parent / "vqav2", "vqav2", "train")
    assert isinstance(found, Rejected) and "not valid Unicode" in found.reason
