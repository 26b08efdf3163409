"""VQAv2, OKVQA, A-OKVQA and VizWiz.

vqav2/v2_OpenEnded_mscoco_{train,val}2014_questions.json
vqav2/v2_mscoco_{train,val}2014_annotations.json
okvqa/OpenEnded_mscoco_{train,val}2014_questions.json
okvqa/mscoco_{train,val}2014_annotations.json
aokvqa/aokvqa_v1p0_{train,val}.json
vizwiz/{val,test}.json, vizwiz/{val,test}/VizWiz_val_00000000.jpg
"""

from collections import Counter
from pathlib import Path
from typing import Any

from ibtrain.data.instructions import format_options
from ibtrain.data.toy.coco import CocoPictures
from ibtrain.data.toy.knowledge import knowledge_questions
from ibtrain.data.toy.pictures import (
    ANNOTATORS,
    Picture,
    ToyWriter,
    annotators_answers,
    balanced,
    write_json,
)
from ibtrain.data.toy.text import Question, questions, unanswerable

QUESTIONS_PER_TRAINING_IMAGE = 5
_IMAGES_PER_KNOWLEDGE_QUESTION = 3  # OKVQA is small beside VQAv2
_UNANSWERABLE_PART = 4  # of VizWiz' questions, every fourth has no answer
_QUESTION_TYPES = {
    "color": ("what color is the", "other"),
    "shape": ("what shape is the", "other"),
    "count": ("how many", "number"),
    "position": ("where is the", "other"),
    "word": ("what word", "other"),
}
_OKVQA_TYPES = {"fruit": "five", "corners": "eight", "meaning": "three"}
_OKVQA_TYPE_NAMES = {
    "three": "Objects, Material and Clothing",
    "five": "Cooking and Food",
    "eight": "Geography, History, Language and Culture",
}


def write(toy: ToyWriter, coco: CocoPictures) -> None:
    """Writes the four datasets; COCO's images are there already."""
    for split in ("train", "val"):
        _write_vqav2(toy, coco, split)
        _write_okvqa(toy, coco, split)
        _write_aokvqa(toy, coco, split)
    for split in ("val", "test"):
        _write_vizwiz(toy, split)


def picture_questions(picture: Picture, used: Counter[str]) -> list[Question]:
    """The questions of VQAv2 on one picture, of the kinds used least so far."""
    random = picture.random("questions")
    asked = questions(picture.scene, random) + questions(picture.scene, random)
    return balanced(asked, used, QUESTIONS_PER_TRAINING_IMAGE)


def _write_vqav2(toy: ToyWriter, coco: CocoPictures, split: str) -> None:
    used: Counter[str] = Counter()
    asked, answered = [], []
    for picture in coco.of(split):
        for index, question in enumerate(picture_questions(picture, used)):
            question_id = picture.number * 1000 + index
            question_type, answer_type = _QUESTION_TYPES[question.kind]
            asked.append(_asked(picture, question_id, question))
            answers = annotators_answers(question, picture.random(str(question_id)))
            answered.append(
                {
                    "question_type": question_type,
                    "multiple_choice_answer": question.answer,
                    "answers": [
                        {"answer": answer, "answer_confidence": "yes", "answer_id": number}
                        for number, answer in enumerate(answers, start=1)
                    ],
                    "image_id": picture.number,
                    "answer_type": answer_type,
                    "question_id": question_id,
                }
            )
            if split == "train":
                toy.said += [question.question, question.answer]
    _write_question_files(toy.folder("vqav2"), "v2_", split, asked, {"annotations": answered})
    toy.count("vqav2", split, len(asked))


def _write_okvqa(toy: ToyWriter, coco: CocoPictures, split: str) -> None:
    used: Counter[str] = Counter()
    asked, answered = [], []
    known = [
        (picture, candidates)
        for picture in coco.of(split)
        if (candidates := knowledge_questions(picture.scene, picture.random("okvqa")))
    ]
    for picture, candidates in known[::_IMAGES_PER_KNOWLEDGE_QUESTION]:
        (question,) = balanced(candidates, used, 1)
        question_id = picture.number * 10 + 5
        asked.append(_asked(picture, question_id, question))
        # Five people answered; each answer stands twice, as in the real files.
        answers = annotators_answers(question, picture.random("answers"), ANNOTATORS // 2)
        answered.append(
            {
                "image_id": picture.number,
                "answer_type": "other",
                "question_type": _OKVQA_TYPES[question.kind],
                "question_id": question_id,
                "answers": [
                    {
                        "answer_id": number,
                        "raw_answer": answer,
                        "answer_confidence": "yes",
                        "answer": answer,
                    }
                    for number, answer in enumerate(sorted(answers * 2), start=1)
                ],
                "confidence": 5,
            }
        )
        if split == "train":
            toy.said += [question.question, question.answer, *answers]
    content = {"annotations": answered, "question_types": _OKVQA_TYPE_NAMES}
    _write_question_files(toy.folder("okvqa"), "", split, asked, content)
    toy.count("okvqa", split, len(asked))


def _asked(picture: Picture, question_id: int, question: Question) -> dict[str, Any]:
    return {
        "image_id": picture.number,
        "question": question.question,
        "question_id": question_id,
    }


def _write_question_files(
    folder: Path, prefix: str, split: str, asked: list[dict[str, Any]], annotations: dict[str, Any]
) -> None:
    """A file of questions and one of answers, as visualqa.org lays them out."""
    head = {"info": {"description": "toy world"}, "data_type": "mscoco"}
    head |= {"data_subtype": f"{split}2014", "license": {"name": "", "url": ""}}
    write_json(
        folder / f"{prefix}OpenEnded_mscoco_{split}2014_questions.json",
        head | {"task_type": "Open-Ended", "questions": asked},
    )
    write_json(folder / f"{prefix}mscoco_{split}2014_annotations.json", head | annotations)


def _write_aokvqa(toy: ToyWriter, coco: CocoPictures, split: str) -> None:
    used: Counter[str] = Counter()
    rows = []
    for picture in coco.of(split):
        random = picture.random("aokvqa")
        candidates = questions(picture.scene, random) + knowledge_questions(picture.scene, random)
        (question,) = balanced(candidates, used, 1)
        rows.append(
            {
                "split": split,
                "image_id": picture.number,
                "question_id": f"toy{picture.number:08d}",
                "question": question.question,
                "choices": list(question.choices),
                "correct_choice_idx": question.choices.index(question.answer),
                "direct_answers": annotators_answers(question, random),
                "difficult_direct_answer": False,
                "rationales": [question.full_answer] * 3,
            }
        )
        if split == "train":
            toy.said += [question.question, format_options(question.choices)]
    write_json(toy.folder("aokvqa") / f"aokvqa_v1p0_{split}.json", rows)
    toy.count("aokvqa", split, len(rows))


def _write_vizwiz(toy: ToyWriter, split: str) -> None:
    """Blind people's questions, some of which their pictures do not answer; test has no answers."""
    folder = toy.folder("vizwiz")
    pictures = toy.draw(
        folder / split,
        f"vizwiz-{split}",
        range(toy.few),
        lambda number: f"VizWiz_{split}_{number:08d}.jpg",
    )
    used: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    for picture in pictures:
        random = picture.random("questions")
        row: dict[str, Any] = {"image": picture.file}
        if picture.number % _UNANSWERABLE_PART:
            (question,) = balanced(questions(picture.scene, random), used, 1)
            answers = annotators_answers(question, random)
            answer_type = "number" if question.kind == "count" else "other"
            row["question"] = question.question
        else:
            answers = ["unanswerable"] * (ANNOTATORS - 2) + ["unsuitable"] * 2
            answer_type = "unanswerable"
            row["question"] = unanswerable(picture.scene, random)
        if split != "test":
            confidence = "maybe" if answer_type == "unanswerable" else "yes"
            row["answers"] = [
                {"answer_confidence": confidence, "answer": answer} for answer in answers
            ]
            row["answer_type"] = answer_type
            row["answerable"] = int(answer_type != "unanswerable")
        rows.append(row)
    write_json(folder / f"{split}.json", rows)
    toy.count("vizwiz", split, len(rows))
