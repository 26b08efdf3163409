import json

import pytest

from ibtrain.evaluation.submission import write_submission
from tests.evaluation.answers import answered
from tests.evaluation.results import result

WORD = {"id": "262148000", "prediction": "red"}


@pytest.mark.parametrize(
    ("dataset", "way", "values", "expected"),
    [
        ("vqav2", "", WORD, [{"question_id": 262148000, "answer": "red"}]),
        (
            "vizwiz",
            "",
            {"id": "VizWiz_test_00000000", "prediction": "red"},
            [{"image": "VizWiz_test_00000000.jpg", "answer": "red"}],
        ),
        (
            "nocaps",
            "",
            {"id": "7", "prediction": "a ball", "details": {"image_id": "7"}},
            [{"image_id": 7, "caption": "a ball"}],
        ),
        (
            "aokvqa",
            "direct",
            {"id": "22MexNkBPpdZGX6sxbxVBH-direct", "prediction": "red"},
            {"22MexNkBPpdZGX6sxbxVBH": {"direct_answer": "red"}},
        ),
        (
            "aokvqa",
            "choice",
            {"id": "22MexNkBPpdZGX6sxbxVBH-choice", "prediction": "red"},
            {"22MexNkBPpdZGX6sxbxVBH": {"multiple_choice": "red"}},
        ),
    ],
)
def test_forms(tmp_path, dataset, way, values, expected):
    samples = (answered(0, answers=(), **values),)
    one = result("sent", dataset=dataset, way_name=way, samples=samples)
    path = write_submission(one, tmp_path / "deep")
    assert json.loads(path.read_text()) == expected


def test_datasets_without_a_server(tmp_path):
    assert write_submission(result(), tmp_path) is None
    assert list(tmp_path.iterdir()) == []
