"""OCR-VQA: the books of a split, with the tokens read off their covers where there are some."""

from pathlib import Path

from ibtrain.data.records import Answer, Record
from tests.data.readers.harness import instructions, jpeg, prepared, raw_directory


def record(cover: Path, identity: str, question: str, answer: str, tokens: list[str]) -> Record:
    shown = ", ".join(tokens)
    rendered = instructions("visual_question_answering", question=question)
    if tokens:
        form = "question_answering_with_reading"
        rendered = instructions(form, ocr_tokens=shown, question=question)
    return Record(
        dataset="ocr_vqa",
        task="question_answering_with_reading",
        id=identity,
        images=(jpeg(cover),),
        instructions=rendered,
        answers=(Answer(answer),),
        form="question_answering_with_reading" if tokens else "visual_question_answering",
        plain=f"{shown} {question}".strip(),
        details={"image_id": identity.partition("-")[0], "ocr_tokens": tokens},
    )


def test_the_books_of_a_split_with_tokens(tmp_path: Path):
    raw = raw_directory("ocr_vqa/official", tmp_path)
    calendar, doug = raw / "images/761183272.jpg", raw / "images/1449468594.gif"
    read = ["MOM'S", "Family", "2016"]
    assert prepared("ocr_vqa", raw, "train") == (
        [
            record(calendar, "761183272-0", "Who wrote this book?", "Sandra Boynton", read),
            record(
                calendar,
                "761183272-1",
                "What is the title of this book?",
                "Mom's Family Wall Calendar 2016",
                read,
            ),
            record(doug, "1449468594-0", "¿Quién escribió {esto}?", "Peña", []),
        ],
        [
            ("B01", "dataset.json['B01']: 2 questions and 1 answers"),
            ("B02-0", "no image B02.jpg; looked in RAW/images, RAW/image, RAW"),
            ("B03", "dataset.json['B03']: 'split' must be 1, 2 or 3, found '4'"),
        ],
        {"no answer": 1},
    )
    held_out = raw / "images/B00.jpg"
    records, _, _ = prepared("ocr_vqa", raw, "val")
    assert records == [record(held_out, "B00-0", "Held out?", "Yes", [])]


def test_without_tokens(tmp_path: Path):
    raw = raw_directory("ocr_vqa/lavis", tmp_path)
    first, second = raw / "image/761183272.jpg", raw / "image/9.jpg"
    assert prepared("ocr_vqa", raw, "test") == (
        [
            record(first, "761183272-0", "Who wrote this book?", "Sandra Boynton", []),
            record(second, "9-0", "What is the genre?", "Reise & Küche", []),
        ],
        [
            (
                "9-1",
                "ocrvqa.json['9']: question 1: 'question' must be a string that is not empty, "
                "found 5",
            ),
            ("10", "ocrvqa.json['10']: expected an object, found a list"),
        ],
        {},
    )
