import json
from collections import Counter
from pathlib import Path

import pytest
from streaming import MDSWriter

from ibtrain.data.records import Answer, Record
from ibtrain.data.shards.records import COLUMNS, COMPRESSION, HASHES, record_to_columns
from ibtrain.evaluation import benchmarks
from ibtrain.evaluation.benchmarks import decoding_settings, evaluate, with_shuffled_images
from ibtrain.evaluation.run import evaluate_benchmarks, find_benchmarks
from ibtrain.pretrained.opening import open_model
from tests.evaluation.pictures import encoded, noise
from tests.tiny import write_tiny_base

QUESTIONS = (("What color is it?", "red", "color"), ("Is it red?", "yes", "exists"))


def records(count: int = 12, dataset: str = "gqa") -> list[Record]:
    """Two questions on every picture."""
    made = []
    for index in range(count):
        question, answer, kind = QUESTIONS[index % 2]
        made.append(
            Record(
                dataset=dataset,
                task="visual_question_answering",
                id=f"q{index}",
                images=(encoded(noise(index // 2)),),
                instructions=(f"Question: {question} Short answer:",),
                answers=(Answer(answer if index % 6 else "blue"),),
                details={"question_type": kind},
            )
        )
    return made


def write_shards(directory: Path, written: list[Record]) -> Path:
    with MDSWriter(
        out=str(directory), columns=COLUMNS, compression=COMPRESSION, hashes=list(HASHES)
    ) as writer:
        for record in written:
            writer.write(record_to_columns(record))
    return directory


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_processor):
    return write_tiny_base(tmp_path_factory.mktemp("base") / "base", tiny_processor)


@pytest.fixture(scope="module")
def opened(base):
    return open_model(base)


@pytest.fixture
def answering(monkeypatch):
    """Puts answers in the model's mouth: by instruction, or what a function makes of the image."""

    def put(answer):
        def generate(opened, images, prompts, settings):
            return [answer(own, prompt) for own, prompt in zip(images, prompts, strict=True)]

        monkeypatch.setattr(benchmarks, "generate", generate)

    return put


def test_scores(opened, tmp_path, answering):
    answering(lambda images, prompt: "Red." if "color" in prompt else "no")
    result = evaluate(opened, write_shards(tmp_path / "gqa", records()), batch_size=5)
    assert (result.name, result.metric, result.n) == ("gqa", "exact match", 12)
    assert {kind: accuracy.value for kind, accuracy in result.by_type.items()} == {
        "color": 4 / 6,
        "exists": 0.0,
    }
    assert result.value == 4 / 12
    low, high = result.interval
    assert 0.1 < low < result.value < high < 0.7
    assert result.best_constant_by_type == {"color": 4 / 6, "exists": 1.0}
    assert result.best_constant == 10 / 12
    first = result.predictions[2]
    assert (first.id, first.question, first.prediction) == ("q2", "What color is it?", "Red.")
    assert (first.answers, first.question_type, first.correct) == (("red",), "color", True)
    assert result.images["q2"] == encoded(noise(1))


def test_the_model_itself_answers_whatever_the_batch(opened, tmp_path):
    shards = write_shards(tmp_path / "gqa", records())
    one = evaluate(opened, shards, batch_size=1, limit=7)
    many = evaluate(opened, shards, batch_size=5, limit=7)
    assert one.predictions == many.predictions
    assert many.n == 7
    assert all(prediction.prediction for prediction in many.predictions)


def test_decoding_of_short_answers():
    settings = decoding_settings("gqa")
    assert (settings.beams, settings.max_new_tokens) == (1, 10)


def test_shuffled_images(opened, tmp_path, answering):
    seen = []
    answering(lambda images, prompt: str(seen.append(images[0])))
    shards = write_shards(tmp_path / "gqa", records())
    result = evaluate(opened, shards, shuffle_images=True, seed=3)
    own = [record.images[0] for record in records()]
    assert result.shuffled_images
    assert all(given != kept for given, kept in zip(seen, own, strict=True))
    assert Counter(seen) == Counter(own)
    assert result.images["q0"] == seen[0]


def test_shuffling_is_a_derangement_by_seed():
    given = records(40)
    shuffled = with_shuffled_images(given, 0)
    assert [record.id for record in shuffled] == [record.id for record in given]
    assert all(a.images != b.images for a, b in zip(given, shuffled, strict=True))
    assert shuffled == with_shuffled_images(given, 0)
    assert shuffled != with_shuffled_images(given, 1)


def test_shuffling_where_one_picture_is_most_of_all():
    given = records(12)
    many = [record if index < 4 else given[4] for index, record in enumerate(given)]
    moved = sum(
        a.images != b.images for a, b in zip(many, with_shuffled_images(many, 0), strict=True)
    )
    assert moved == 8  # the four others, and the four that take their places
    with pytest.raises(ValueError, match="1 different images among 8"):
        with_shuffled_images([given[4]] * 8, 0)


def test_records_without_an_image_are_asked_without(opened, tmp_path, answering):
    answering(lambda images, prompt: str(len(images)))
    written = [Record("gqa", "t", "q0", (), ("Why?",), (Answer("0"),))]
    result = evaluate(opened, write_shards(tmp_path / "gqa", written))
    assert result.value == 1.0
    assert list(result.by_type) == ["all"]
    assert result.predictions[0].question == "Why?"
    assert result.images == {}


def test_what_cannot_be_scored_is_refused(opened, tmp_path):
    captions = write_shards(tmp_path / "captions", records(2, dataset="coco_caption"))
    with pytest.raises(ValueError, match="scored by CIDEr, which is not computed here"):
        evaluate(opened, captions)
    mixed = write_shards(tmp_path / "mixed", records(2) + records(2, dataset="vqav2"))
    with pytest.raises(ValueError, match="a benchmark is of one dataset"):
        evaluate(opened, mixed)
    with pytest.raises(ValueError, match="is not there"):
        evaluate(opened, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="must be at least 1"):
        evaluate(opened, mixed, batch_size=0)


def test_every_benchmark_of_a_directory(base, tmp_path):
    data = tmp_path / "data"
    write_shards(data / "gqa", records(4))
    write_shards(data / "gqa-challenge", records(6))
    write_shards(data / "coco_caption", records(2, dataset="coco_caption"))
    document = evaluate_benchmarks(base, data, None, tmp_path / "out", batch_size=4)
    assert list(document["benchmarks"]) == ["gqa", "gqa-challenge"]
    assert document["benchmarks"]["gqa-challenge"]["n"] == 6
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == document
    assert find_benchmarks(data, ["gqa-challenge"]) == [data / "gqa-challenge"]


def test_benchmarks_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="is not there"):
        find_benchmarks(tmp_path / "nowhere", None)
    with pytest.raises(ValueError, match="no benchmark that is scored here"):
        find_benchmarks(tmp_path, None)
    write_shards(tmp_path / "captions", records(2, dataset="coco_caption"))
    with pytest.raises(ValueError, match="no benchmark that is scored here; found: captions"):
        find_benchmarks(tmp_path, None)
    with pytest.raises(ValueError, match="CIDEr"):
        find_benchmarks(tmp_path, ["captions"])
    with pytest.raises(ValueError, match="holds no benchmark 'gqa'; found: captions"):
        find_benchmarks(tmp_path, ["gqa"])
