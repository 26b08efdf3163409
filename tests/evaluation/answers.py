"""Answered records for tests."""

from typing import Any

from ibtrain.data.records import Answer
from ibtrain.evaluation.answered import Answered


def answered(
    index: int = 0, prediction: str = "red", answers: Any = ("red",), **values: Any
) -> Answered:
    """A record with its prediction; answers are texts, or how many gave each."""
    counted = answers if isinstance(answers, dict) else dict.fromkeys(answers, 1)
    standard = {
        "index": index,
        "id": f"q{index}",
        "form": "visual_question_answering",
        "question": "What color is it?",
        "instruction": "Question: What color is it? Short answer:",
        "prediction": prediction,
        "answers": tuple(Answer(text, float(count)) for text, count in counted.items()),
        "group": f"image {index}",
    }
    return Answered(**{**standard, **values})
