import json
from dataclasses import replace

import pytest
from PIL import Image

from ibtrain.evaluation.report import write_results
from ibtrain.evaluation.scoring import shown
from ibtrain.evaluation.sheet import Prediction, picture
from tests.evaluation.answers import answered
from tests.evaluation.pictures import encoded, noise
from tests.evaluation.results import result


def prediction(index: int, **values) -> Prediction:
    standard = Prediction(
        id=f"q{index}",
        question="What color is it?",
        prediction="red",
        answers=("red",),
        question_type=("color", "exists")[index % 2],
        correct=True,
    )
    return replace(standard, **values)


def test_results_are_written(tmp_path):
    out = tmp_path / "deep" / "out"
    document = write_results([result("gqa"), result("other", 3)], out, {"model": "tiny", "step": 3})
    assert json.loads((out / "results.json").read_text()) == document
    assert document["model"] == {"model": "tiny", "step": 3}
    scores = document["benchmarks"]["gqa"]
    assert (scores["value"], scores["n"], scores["metric"]) == (12 / 14, 14, "exact match")
    assert scores["interval"][0] < 12 / 14 < scores["interval"][1]
    assert scores["by_type"]["color"] == {
        "value": 6 / 7,
        "interval": scores["by_type"]["color"]["interval"],
        "n": 7,
    }
    assert scores["best_constant"] == 1.0
    assert scores["protocol"]["decoding.beams"] == {"value": 5, "source": "released code"}
    assert scores["protocol"]["split"] == {"value": "testdev", "source": "published"}
    assert scores["table_1"]["InstructBLIP Vicuna-7B"] == 49.2
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 17
    assert lines[-1]["benchmark"] == "other"
    assert (lines[0]["answers"], lines[0]["weights"]) == (["red"], [1.0])
    assert (lines[0]["value"], lines[0]["correct"]) == (0.0, False)
    assert (lines[1]["value"], lines[1]["correct"]) == (1.0, True)
    assert "| gqa | exact match | 85.71 |" in (out / "results.md").read_text()
    names = ["gqa.png", "index.html", "other.png", "predictions.jsonl", "results.json"]
    assert sorted(path.name for path in out.iterdir()) == [*names, "results.md"]


def test_the_page_needs_nothing_beside_itself_and_escapes_what_models_say(tmp_path):
    samples = tuple(
        answered(n, "<script>alert(1)</script>", question="<b>Why?</b>") for n in range(3)
    )
    write_results([result(samples=samples), result("visdial & co")], tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert "<script" not in page and "<b>Why" not in page
    assert "&lt;script&gt;alert(1)" in page and "visdial &amp; co" in page
    assert "http://" not in page and "https://" not in page
    assert "InstructBLIP Vicuna-13B" in page and "salesforce/LAVIS#575" in page
    assert page.count("data:image/jpeg;base64,") == 3 + 14
    assert 'class="card wrong"' in page and 'class="card right"' in page


def test_no_score_is_invented_where_no_answers_are_public(tmp_path):
    samples = tuple(answered(n, answers=()) for n in range(3))
    document = write_results([result("vqav2", dataset="vqav2", samples=samples)], tmp_path)
    row = document["benchmarks"]["vqav2"]
    assert (row["value"], row["interval"], row["n"]) == (None, None, 0)
    assert "| vqav2 | VQA accuracy | - | - | 0 |" in (tmp_path / "results.md").read_text()
    sent = json.loads((tmp_path / "submissions" / "vqav2.json").read_text())
    assert sent[0] == {"question_id": "q0", "answer": "red"}
    assert all(one.correct is None for one in shown(result(samples=samples)))


def test_a_name_is_used_once(tmp_path):
    with pytest.raises(ValueError, match="two results are called 'gqa'"):
        write_results([result(), result()], tmp_path)


def test_the_sheet(tmp_path):
    predictions = [
        prediction(0, correct=False, prediction=""),
        prediction(1, correct=False, prediction="word " * 40, question="Why " * 60),
        prediction(2, prediction="d" * 90, correct=None),
        *(prediction(index) for index in range(3, 14)),
    ]
    images = {f"q{index}": encoded(noise(index)) for index in range(14)}
    images["q3"] = encoded(noise(3, size=(400, 30)))
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
