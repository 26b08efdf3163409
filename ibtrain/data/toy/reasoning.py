"""GQA, VSR, IconQA and ScienceQA.

    gqa/{testdev,challenge}_balanced_questions.json, gqa/images/*.jpg
    vsr/splits/zeroshot/{train,dev,test}.jsonl, vsr/images/*.jpg
    iconqa/iconqa/{val,test}/choose_txt/1/{data.json,image.png}
    scienceqa/{problems,pid_splits}.json, scienceqa/images/test/1/image.png

GQA's `testdev` holds unseen scenes of attribute pairs that training has, `challenge` scenes with
held-out pairs.
"""

from collections import Counter
from typing import Any

from ibtrain.data.toy.knowledge import CORNERS, knowledge_questions, statement
from ibtrain.data.toy.pictures import ToyWriter, balanced, save_image, write_json, write_json_lines
from ibtrain.data.toy.text import questions
from ibtrain.data.toy.world import SHAPES, sample_scene

QUESTIONS_PER_TEST_IMAGE = 2
_SKILLS = {"color": "S1", "shape": "S1", "count": "S2", "position": "S3", "word": "S1"}
_SCIENCE = {"task": "closed choice", "grade": "grade2", "subject": "natural science"}
_LECTURE = "A corner is a point where two sides of a shape meet."


def write(toy: ToyWriter) -> None:
    """Writes the four datasets."""
    _write_gqa(toy, "testdev", held_out=False)
    _write_gqa(toy, "challenge", held_out=True)
    for number, split in enumerate(("train", "dev", "test")):
        _write_vsr(toy, split, 1 + number * 100_000)
    for split in ("val", "test"):
        _write_iconqa(toy, split)
    _write_scienceqa(toy)


def _write_gqa(toy: ToyWriter, split: str, *, held_out: bool) -> None:
    folder = toy.folder("gqa")
    initial = "n" if held_out else "t"
    pictures = toy.draw(
        folder / "images",
        split,
        range(1, 1 + toy.test_images),
        lambda number: f"{initial}{number:07d}.jpg",
        held_out=held_out,
    )
    used: Counter[str] = Counter()
    rows = {}
    for picture in pictures:
        image_id = picture.file.removesuffix(".jpg")
        asked = questions(picture.scene, picture.random("gqa"))
        for index, question in enumerate(balanced(asked, used, QUESTIONS_PER_TEST_IMAGE)):
            rows[f"{'2' if held_out else '1'}{picture.number:07d}{index}"] = {
                "semantic": [],
                "entailed": [],
                "equivalent": [],
                "question": question.question,
                "imageId": image_id,
                "isBalanced": True,
                "groups": {"global": question.kind, "local": f"{image_id}-{question.kind}"},
                "answer": question.answer,
                "semanticStr": "",
                "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
                "types": {"detailed": question.kind, "semantic": "attr", "structural": "query"},
                "fullAnswer": question.full_answer,
            }
    write_json(folder / f"{split}_balanced_questions.json", rows)
    toy.count("gqa", split, len(rows))


def _write_vsr(toy: ToyWriter, split: str, first: int) -> None:
    """True and false statements about the places of two things, in turn."""
    folder = toy.folder("vsr")
    rows: list[dict[str, Any]] = []
    number = first
    while len(rows) < toy.few:
        random = toy.random(f"vsr/{number}")
        scene = sample_scene(random, held_out=False)
        label = len(rows) % 2
        said = statement(scene, random, true=bool(label))
        if said is not None:
            name = f"{number:012d}.jpg"
            save_image(folder / "images" / name, scene, random)
            voters = random.sample(range(1, 11), 2)
            rows.append(
                {
                    "image": name,
                    "image_link": f"http://images.cocodataset.org/train2017/{name}",
                    "caption": said[0],
                    "label": label,
                    "relation": said[1],
                    "annotator_id": random.randint(1, 31),
                    "vote_true_validator_id": voters if label else [],
                    "vote_false_validator_id": [] if label else voters,
                }
            )
        number += 1
    write_json_lines(folder / "splits/zeroshot" / f"{split}.jsonl", rows)
    toy.count("vsr", split, len(rows))


def _write_iconqa(toy: ToyWriter, split: str) -> None:
    """One folder for each question, of the sub-task whose choices are texts."""
    folder = toy.folder("iconqa") / "iconqa" / split / "choose_txt"
    first = 1 if split == "test" else 100_001
    numbers = range(first, first + toy.few)
    used: Counter[str] = Counter()
    for picture in toy.draw(folder, "iconqa", numbers, lambda number: f"{number}/image.png"):
        asked = questions(picture.scene, picture.random("iconqa"))
        (question,) = balanced(asked, used, 1)
        content = {
            "question": question.question,
            "choices": list(question.choices),
            "answer": question.choices.index(question.answer),
            "ques_type": "choose_txt",
            "grade": "grade1",
            "label": _SKILLS[question.kind],
        }
        write_json(folder / f"{picture.number}" / "data.json", content)
    toy.count("iconqa", split, len(numbers))


def _write_scienceqa(toy: ToyWriter) -> None:
    """Half of the problems have an image, and of either half every other one has a hint."""
    folder = toy.folder("scienceqa")
    problems: dict[str, dict[str, Any]] = {}
    splits: dict[str, list[str]] = {}
    for number, split in enumerate(("train", "val", "test")):
        first = 1 + number * 100_000
        splits[split] = [str(pid) for pid in range(first, first + 2 * toy.few)]
        pictures = toy.draw(
            folder / "images",
            "scienceqa",
            range(first, first + 2 * toy.few, 2),
            lambda pid, split=split: f"{split}/{pid}/image.png",  # type: ignore[misc]
            word_share=1.0,  # so that there is a question about each
        )
        for index, picture in enumerate(pictures):
            (question,) = knowledge_questions(picture.scene, picture.random("scienceqa"))[:1]
            problems[str(picture.number)] = _SCIENCE | {
                "question": question.question,
                "choices": list(question.choices),
                "answer": question.choices.index(question.answer),
                "hint": _LECTURE if index % 2 else "",
                "image": "image.png",
                "topic": "shapes",
                "category": "Shapes and words",
                "skill": "Look closely",
                "lecture": _LECTURE,
                "solution": question.full_answer,
                "split": split,
            }
            problems[str(picture.number + 1)] = _problem_without_image(index) | {"split": split}
        toy.count("scienceqa", split, len(pictures))
    minimum = {f"mini{name}": pids[:2] for name, pids in splits.items()}
    trainval = {"trainval": splits["train"] + splits["val"]}
    write_json(folder / "pid_splits.json", splits | minimum | trainval)
    write_json(folder / "problems.json", problems)


def _problem_without_image(index: int) -> dict[str, Any]:
    shape = SHAPES[index % len(SHAPES)]
    return _SCIENCE | {
        "question": f"Which shape has {CORNERS[shape]} corners?",
        "choices": list(SHAPES),
        "answer": SHAPES.index(shape),
        "hint": _LECTURE if index % 2 else "",
        "image": None,
        "topic": "shapes",
        "category": "Shapes and words",
        "skill": "Count corners",
        "lecture": _LECTURE,
        "solution": f"A {shape} has {CORNERS[shape]} corners.",
    }
