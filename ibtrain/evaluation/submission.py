"""Predictions in the forms that the owners' servers take.

VQAv2, OKVQA, TextVQA   [{"question_id": 1, "answer": "red"}, ...]
VizWiz                  [{"image": "VizWiz_test_00000000.jpg", "answer": "red"}, ...]
NoCaps                  [{"image_id": 0, "caption": "a red ball"}, ...]
A-OKVQA                 {"QUESTION": {"direct_answer": "red", "multiple_choice": "red"}, ...}
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ibtrain.evaluation.answered import Answered
from ibtrain.evaluation.scoring import Result
from ibtrain.files import write_whole


def write_submission(result: Result, directory: Path) -> Path | None:
    """Writes DIRECTORY/NAME.json where the dataset has a server; its path, or None.

    Raises:
        OSError: when it cannot be written.
    """
    make = _FORMS.get(result.protocol.dataset)
    if make is None:
        return None
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{result.name}.json"
    write_whole(path, json.dumps(make(result), ensure_ascii=False, indent=1) + "\n")
    return path


def _number(text: str) -> int | str:
    """An id as its owners write it: a number where it is one."""
    return int(text) if text.isascii() and text.isdigit() else text


def _vqa(result: Result) -> list[dict[str, Any]]:
    return [
        {"question_id": _number(sample.id), "answer": sample.prediction}
        for sample in result.samples
    ]


def _vizwiz(result: Result) -> list[dict[str, Any]]:
    # Records are called by their image without its suffix, which is .jpg for all of VizWiz.
    return [{"image": f"{sample.id}.jpg", "answer": sample.prediction} for sample in result.samples]


def _captions(result: Result) -> list[dict[str, Any]]:
    return [
        {"image_id": _number(_image(sample)), "caption": sample.prediction}
        for sample in result.samples
    ]


def _image(sample: Answered) -> str:
    return str(sample.details.get("image_id", sample.id))


def _aokvqa(result: Result) -> dict[str, dict[str, str]]:
    key = "multiple_choice" if result.way_name == "choice" else "direct_answer"
    return {
        sample.id.rpartition("-")[0] or sample.id: {key: sample.prediction}
        for sample in result.samples
    }


_FORMS: dict[str, Callable[[Result], Any]] = {
    "vqav2": _vqa,
    "okvqa": _vqa,
    "textvqa": _vqa,
    "vizwiz": _vizwiz,
    "nocaps": _captions,
    "coco_caption": _captions,
    "textcaps": _captions,
    "aokvqa": _aokvqa,
}
