"""VQAv2 and OKVQA, answered and asked: the owners' two files, and LAVIS's one."""

from pathlib import Path
from typing import Any

from ibtrain.data.records import Answer, Record
from tests.data.readers.harness import instructions, jpeg, prepared, raw_directory

TRAIN = "images/train2014/COCO_train2014_"
ROOTS = "RAW/images, RAW/../coco/images, RAW"


def answered(
    dataset: str,
    image: Path,
    identity: str,
    question: str,
    answers: dict[str, float],
    **details: Any,
) -> Record:
    task = "image" if dataset == "vqav2" else "knowledge"
    return Record(
        dataset=dataset,
        task=f"{task}_question_answering",
        id=identity,
        images=(jpeg(image),),
        instructions=instructions("visual_question_answering", question=question),
        answers=tuple(Answer(text, weight) for text, weight in answers.items()),
        form="visual_question_answering",
        plain=question,
        details=details,
    )


def asked(
    dataset: str, image: Path, identity: str, answer: str, question: str, **details: Any
) -> Record:
    return Record(
        dataset=f"{dataset}_question_generation",
        task="question_generation",
        id=identity,
        images=(jpeg(image),),
        instructions=instructions("question_generation", answer=answer),
        answers=(Answer(question),),
        form="question_generation",
        plain=answer,
        details=details,
    )


def test_ten_annotators_of_vqav2(tmp_path: Path):
    raw = raw_directory("vqav2/official", tmp_path)
    image = tmp_path / f"coco/{TRAIN}000000458752.jpg"
    questions = "v2_OpenEnded_mscoco_train2014_questions.json"
    quarantine = [
        ("262146000", f"no image COCO image 262146; looked in {ROOTS}"),
        (
            "458752003",
            f"{questions}[5]: question 458752003 has no entry in "
            "v2_mscoco_train2014_annotations.json",
        ),
    ]
    net = {"question_type": "what is this", "answer_type": "other"}
    position = {"question_type": "what", "answer_type": "other"}
    looking = "What is this photo taken looking through?"
    assert prepared("vqav2", raw, "train") == (
        [
            answered(
                "vqav2",
                image,
                "458752000",
                looking,
                {"net": 8.0, "netting": 1.0, "mesh": 1.0},
                **net,
            ),
            answered(
                "vqav2",
                image,
                "458752001",
                "¿Qué posición {juega}?",
                {"lanzador": 7.0, "catcher": 2.0},
                **position,
            ),
        ],
        quarantine,
        {"no answer": 1, "duplicate": 1},
    )
    assert prepared("vqav2_question_generation", raw, "train") == (
        [
            asked("vqav2", image, "458752000", "net", looking, **net),
            asked("vqav2", image, "458752001", "lanzador", "¿Qué posición {juega}?", **position),
        ],
        quarantine,
        {"no answer": 1, "duplicate": 1},
    )


def test_questions_whose_answers_are_not_public(tmp_path: Path):
    raw = raw_directory("vqav2/official", tmp_path)
    assert prepared("vqav2", raw, "testdev") == (
        [
            answered(
                "vqav2",
                tmp_path / "coco/images/test2015/COCO_test2015_000000262144.jpg",
                "262144000",
                "Is the ball flying towards the batter?",
                {},
            )
        ],
        [],
        {},
    )


def test_vqav2_of_lavis(tmp_path: Path):
    raw = raw_directory("vqav2/lavis", tmp_path)
    coco = tmp_path / "coco"
    first = coco / f"{TRAIN}000000458752.jpg"
    second = coco / "images/val2014/COCO_val2014_000000000042.jpg"
    looking = "What is this photo taken looking through?"
    dropped = {"no answer": 1}
    assert prepared("vqav2", raw, "train") == (
        [
            answered(
                "vqav2", first, "458752000", looking, {"net": 8.0, "netting": 1.0, "mesh": 1.0}
            ),
            answered("vqav2", first, "458752002", "A number?", {"1": 1.0, "2": 1.0}),
            answered("vqav2", first, "458752000#2", "The same id?", {"yes": 1.0}),
            answered("vqav2", second, "42000", "Où?", {"là": 1.0}),
        ],
        [],
        dropped,
    )
    assert prepared("vqav2_question_generation", raw, "train") == (
        [
            asked("vqav2", first, "458752000", "net", looking),
            asked("vqav2", first, "458752002", "1", "A number?"),
            asked("vqav2", first, "458752000#2", "yes", "The same id?"),
            asked("vqav2", second, "42000", "là", "Où?"),
        ],
        [],
        dropped,
    )


def test_okvqa(tmp_path: Path):
    raw = raw_directory("okvqa/official", tmp_path)
    image = tmp_path / f"coco/{TRAIN}000000051606.jpg"
    called = "What is the hairstyle of the blond called?"
    details = {"question_type": "four", "answer_type": "other"}
    answers = {"pony tail": 6.0, "braid": 2.0, "ponytail": 2.0}
    quarantine = [
        ("817215", f"no image COCO image 81721; looked in {ROOTS}"),
        (
            "516066",
            "mscoco_train2014_annotations.json[1]: 'answers' must be a list, found 'none'",
        ),
        (
            "516067",
            "OpenEnded_mscoco_train2014_questions.json[3]: 'question' must be a string that is "
            "not empty, found ''",
        ),
    ]
    assert prepared("okvqa", raw, "train") == (
        [answered("okvqa", image, "516065", called, answers, **details)],
        quarantine,
        {},
    )
    assert prepared("okvqa_question_generation", raw, "train") == (
        [asked("okvqa", image, "516065", "pony tail", called, **details)],
        quarantine,
        {},
    )


def test_okvqa_of_lavis(tmp_path: Path):
    raw = raw_directory("okvqa/lavis", tmp_path)
    image = raw / f"{TRAIN}000000051606.jpg"
    called = "What is the hairstyle of the blond called?"
    answers = {"pony tail": 3.0, "braid": 2.0, "ponytail": 1.0}
    quarantine = [("516067", f"no image train2014/gone.jpg; looked in {ROOTS}")]
    assert prepared("okvqa", raw, "train") == (
        [answered("okvqa", image, "516065", called, answers)],
        quarantine,
        {"no answer": 1},
    )
    assert prepared("okvqa_question_generation", raw, "train") == (
        [asked("okvqa", image, "516065", "pony tail", called)],
        quarantine,
        {"no answer": 1},
    )
