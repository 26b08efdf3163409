"""ScienceQA: problems with an image, with and without a hint."""

from pathlib import Path

from ibtrain.data.records import Answer, Record
from tests.data.readers.harness import jpeg, prepared, raw_directory

CONTEXT = (
    "The diagram below is a model of two solutions.\nEach green ball is one particle of solute."
)


def test_problems_with_an_image(tmp_path: Path):
    raw = raw_directory("scienceqa/official", tmp_path)
    records, quarantine, dropped = prepared("scienceqa", raw, "test")
    asked = "Welche Lösung hat eine höhere Konzentration - A oder B?"
    options = "(a) Lösung A (b) Lösung B"
    assert records == [
        Record(
            dataset="scienceqa",
            task="knowledge_question_answering",
            id="5",
            images=(jpeg(raw / "images/test/5/image.png"),),
            instructions=(f"Context: {CONTEXT} Question: {asked} Options: {options}. Answer:",),
            answers=(Answer("Lösung B"),),
            form="multiple_choice_with_context",
            plain=f"{CONTEXT} {asked} {options}",
            details={
                "choices": ["Lösung A", "Lösung B"],
                "correct_choice": 1,
                "question_type": "natural science",
                "topic": "physics",
                "category": "Solutions",
                "skill": "Compare concentrations of solutions",
                "grade": "grade8",
            },
        ),
        Record(
            dataset="scienceqa",
            task="knowledge_question_answering",
            id="6",
            images=(jpeg(raw / "images/test/6/image.png"),),
            instructions=(
                "Question: Is the following statement true? Options: (a) false (b) true. Answer:",
            ),
            answers=(Answer("false"),),
            form="multiple_choice",
            plain="Is the following statement true? (a) false (b) true",
            details={
                "choices": ["false", "true"],
                "correct_choice": 0,
                "question_type": "natural science",
                "topic": "biology",
                "category": "Animals",
                "grade": "grade3",
            },
        ),
    ]
    assert quarantine == [
        ("7", "no image test/7/image.png; looked in RAW/images, RAW"),
        ("8", "problems.json['8']: 'choices' must be 2 to 26 strings that are not empty"),
        ("9", "problems.json['9']: 'answer' is 2, there are 2 choices"),
        ("12", "problems.json has no problem 12, which the split names"),
    ]
    assert dropped == {"no image": 1}


def test_a_split_is_what_its_list_names(tmp_path: Path):
    raw = raw_directory("scienceqa/official", tmp_path)
    records, quarantine, dropped = prepared("scienceqa", raw, "train")
    assert [(record.id, record.answers) for record in records] == [
        ("1", (Answer("West Virginia"),))
    ]
    assert (quarantine, dropped) == ([], {})


def test_the_object_of_lavis(tmp_path: Path):
    raw = raw_directory("scienceqa/lavis", tmp_path)
    records, quarantine, dropped = prepared("scienceqa", raw, "test")
    asked = "Which solution has a higher concentration?"
    options = "(a) Solution A (b) Solution B"
    assert records == [
        Record(
            dataset="scienceqa",
            task="knowledge_question_answering",
            id="5",
            images=(jpeg(raw / "images/test/5/image.png"),),
            instructions=(f"Question: {asked} Options: {options}. Answer:",),
            answers=(Answer("Solution B"),),
            form="multiple_choice",
            plain=f"{asked} {options}",
            details={
                "choices": ["Solution A", "Solution B"],
                "correct_choice": 1,
                "question_type": "natural science",
                "topic": "physics",
                "category": "Solutions",
                "skill": "Compare",
                "grade": "grade8",
            },
        )
    ]
    assert (quarantine, dropped) == ([], {"no image": 1})
