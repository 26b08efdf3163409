import json
from dataclasses import replace

import pytest
from PIL import Image

from ibtrain.evaluation.benchmarks import BenchmarkResult, Prediction
from ibtrain.evaluation.metrics import Accuracy
from ibtrain.evaluation.report import write_results
from ibtrain.evaluation.sheet import picture
from tests.evaluation.pictures import encoded, noise


def prediction(index: int, **values) -> Prediction:
    standard = Prediction(
        id=f"q{index}",
        question="What color is it?",
        instruction="Question: What color is it? Short answer:",
        prediction="red",
        answers=("red",),
        question_type=("color", "exists")[index % 2],
        correct=True,
    )
    return replace(standard, **values)


def result(name: str = "gqa", count: int = 14) -> BenchmarkResult:
    predictions = [prediction(index) for index in range(count)]
    return BenchmarkResult(
        name=name,
        metric="exact match",
        value=1.0,
        interval=(0.78, 1.0),
        n=count,
        by_type={"color": Accuracy(1.0, (0.6, 1.0), 7)},
        best_constant=0.5,
        best_constant_by_type={"color": 0.5, "exists": 0.5},
        shuffled_images=False,
        predictions=predictions,
        images={one.id: encoded(noise(index)) for index, one in enumerate(predictions)},
    )


def test_results_are_written(tmp_path):
    document = write_results([result("gqa"), result("other", 3)], tmp_path / "deep" / "out")
    out = tmp_path / "deep" / "out"
    assert json.loads((out / "results.json").read_text()) == document
    scores = document["benchmarks"]["gqa"]
    assert scores["interval"] == [0.78, 1.0]
    assert scores["by_type"] == {"color": {"value": 1.0, "interval": [0.6, 1.0], "n": 7}}
    assert set(scores) == {
        "metric",
        "value",
        "interval",
        "n",
        "by_type",
        "best_constant",
        "best_constant_by_type",
        "shuffled_images",
    }
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 17
    assert lines[-1]["benchmark"] == "other"
    assert lines[0]["answers"] == ["red"]
    names = ["gqa.png", "other.png", "predictions.jsonl", "results.json"]
    assert sorted(path.name for path in out.iterdir()) == names


def test_a_name_is_used_once(tmp_path):
    with pytest.raises(ValueError, match="two results are called 'gqa'"):
        write_results([result(), result()], tmp_path)


def test_the_sheet(tmp_path):
    one = result()
    predictions = [
        replace(one.predictions[0], correct=False, prediction=""),
        replace(one.predictions[1], correct=False, prediction="word " * 40, question="Why " * 60),
        replace(one.predictions[2], prediction="d" * 90),
        *one.predictions[3:],
    ]
    images = one.images | {"q3": encoded(noise(3, size=(400, 30)))}
    picture(predictions, images, tmp_path / "sheet.png", "title " * 40)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert 1000 < sheet.width < 1400
        assert sheet.height > 900
    picture(predictions[:2], images, tmp_path / "small.png")
    with Image.open(tmp_path / "small.png") as small:
        assert small.width < 700
    with pytest.raises(ValueError, match="nothing to draw"):
        picture(predictions, {}, tmp_path / "none.png")


def test_small_pictures_are_enlarged_without_smoothing(tmp_path):
    half = Image.new("RGB", (48, 48), "red")
    half.paste("blue", (24, 0, 48, 48))
    picture([prediction(0)], {"q0": encoded(half)}, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        colors = [color for _, color in sorted(sheet.convert("RGB").getcolors(1 << 20))[-4:]]
    assert (255, 0, 0) in colors
    assert (0, 0, 255) in colors
    with Image.open(tmp_path / "sheet.png") as sheet:
        reds = [count for count, color in sheet.getcolors(1 << 20) if color == (255, 0, 0)]
    assert reds == [120 * 240]
