"""A-OKVQA: a direct and a multiple-choice example of each question, or the question itself."""

from pathlib import Path
from typing import Any

from ibtrain.data.records import Answer, Record
from tests.data.readers.harness import instructions, jpeg, prepared, raw_directory

BAGS = "22MexNkBPpdZGX6sxbxVBH"
ROOTS = "RAW/images, RAW/../coco/images, RAW"


def direct(
    image: Path, identity: str, question: str, answers: dict[str, float], **details: Any
) -> Record:
    return Record(
        dataset="aokvqa",
        task="knowledge_question_answering",
        id=f"{identity}-direct",
        images=(jpeg(image),),
        instructions=instructions("visual_question_answering", question=question),
        answers=tuple(Answer(text, weight) for text, weight in answers.items()),
        form="visual_question_answering",
        plain=question,
        details=details,
    )


def choice(
    image: Path, identity: str, question: str, options: str, answer: str | None, **details: Any
) -> Record:
    return Record(
        dataset="aokvqa",
        task="knowledge_question_answering",
        id=f"{identity}-choice",
        images=(jpeg(image),),
        instructions=instructions("multiple_choice", question=question, options=options),
        answers=() if answer is None else (Answer(answer),),
        form="multiple_choice",
        plain=f"{question} {options}",
        details=details,
    )


def test_both_examples_of_a_question(tmp_path: Path):
    raw = raw_directory("aokvqa/official", tmp_path)
    image = tmp_path / "coco/images/train2017/000000299207.jpg"
    place = "aokvqa_v1p0_train.json"
    waiting = {"ride": 3.0, "taxi": 2.0, "cab": 2.0, "bus": 1.0, "travelling": 1.0, "traffic": 1.0}
    records, quarantine, dropped = prepared("aokvqa", raw, "train")
    assert records == [
        direct(
            image,
            BAGS,
            "What is the man by the bags awaiting?",
            waiting,
            difficult_direct_answer=False,
        ),
        choice(
            image,
            BAGS,
            "What is the man by the bags awaiting?",
            "(a) skateboarder (b) train (c) delivery (d) cab",
            "cab",
            choices=["skateboarder", "train", "delivery", "cab"],
            correct_choice=3,
        ),
        choice(
            image,
            "23cVaUbqZ",
            "¿Dónde {está}?",
            "(a) aquí (b) allí",
            "aquí",
            choices=["aquí", "allí"],
            correct_choice=0,
        ),
        direct(image, "24wrong", "Which?", {"a": 2.0, "b": 1.0}, difficult_direct_answer=False),
    ]
    assert quarantine == [
        ("24wrong", f"{place}[2]: 'correct_choice_idx' is 4, there are 4 choices"),
        ("25gone", f"no image COCO image 404; looked in {ROOTS}"),
        ("25gone", f"no image COCO image 404; looked in {ROOTS}"),
        ("26one", f"{place}[4]: 'direct_answers' must be a list, found 'a'"),
        ("26one", f"{place}[4]: 'choices' must be 2 to 26 strings that are not empty"),
    ]
    assert dropped == {"no answer": 1}


def test_the_answers_of_the_test_split_are_not_public(tmp_path: Path):
    raw = raw_directory("aokvqa/official", tmp_path)
    image = tmp_path / "coco/images/test2017/000000262144.jpg"
    choices = ["baseball", "golf", "tennis", "chess"]
    options = "(a) baseball (b) golf (c) tennis (d) chess"
    assert prepared("aokvqa", raw, "test") == (
        [
            direct(image, "2test", "What sport is it?", {}),
            choice(image, "2test", "What sport is it?", options, None, choices=choices),
        ],
        [],
        {},
    )


def test_the_question_to_an_answer(tmp_path: Path):
    raw = raw_directory("aokvqa/official", tmp_path)
    image = tmp_path / "coco/images/train2017/000000299207.jpg"

    def asked(identity: str, answer: str, question: str) -> Record:
        return Record(
            dataset="aokvqa_question_generation",
            task="question_generation",
            id=identity,
            images=(jpeg(image),),
            instructions=instructions("question_generation", answer=answer),
            answers=(Answer(question),),
            form="question_generation",
            plain=answer,
            details={"difficult_direct_answer": False},
        )

    assert prepared("aokvqa_question_generation", raw, "train") == (
        [
            asked(BAGS, "ride", "What is the man by the bags awaiting?"),
            asked("24wrong", "a", "Which?"),
        ],
        [
            ("25gone", f"no image COCO image 404; looked in {ROOTS}"),
            (
                "26one",
                "aokvqa_v1p0_train.json[4]: 'direct_answers' must be a list, found 'a'",
            ),
        ],
        {"no answer": 1},
    )


def test_the_list_of_lavis(tmp_path: Path):
    raw = raw_directory("aokvqa/lavis", tmp_path)
    image = raw / "images/train2017/000000299207.jpg"
    outside = ("outside", "the image path '../../outside.jpg' leaves the image folder")
    assert prepared("aokvqa", raw, "train") == (
        [
            direct(
                image,
                BAGS,
                "What is awaited?",
                {"ride": 2.0, "cab": 1.0},
                difficult_direct_answer=False,
            ),
            choice(
                image,
                BAGS,
                "What is awaited?",
                "(a) a bus (b) a train (c) mail (d) a cab",
                "a cab",
                choices=["a bus", "a train", "mail", "a cab"],
                correct_choice=3,
            ),
            direct(image, "elsewhere", "Is it there?", {"yes": 1.0}, difficult_direct_answer=False),
            choice(
                image,
                "elsewhere",
                "Is it there?",
                "(a) yes (b) no",
                "yes",
                choices=["yes", "no"],
                correct_choice=0,
            ),
        ],
        [outside, outside],
        {},
    )
