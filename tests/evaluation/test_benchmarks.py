import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from streaming import MDSWriter

from ibtrain.data.records import Answer, Record
from ibtrain.data.shards.records import COLUMNS, COMPRESSION, HASHES, record_to_columns
from ibtrain.evaluation import answering
from ibtrain.evaluation.benchmarks import Options, evaluate, with_shuffled_images
from ibtrain.evaluation.metric_base import MetricError
from ibtrain.evaluation.protocols import protocol_of
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
                plain=question,
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
def saying(monkeypatch):
    """Puts answers in the model's mouth: by instruction, or what a function makes of the image."""

    def put(answer):
        def generate(opened, images, prompts, settings, allowed=None):
            return [answer(own, prompt) for own, prompt in zip(images, prompts, strict=True)]

        monkeypatch.setattr(answering, "generate", generate)

    return put


def scored(opened, directory, answers, **options):
    protocol = protocol_of(directory)
    (way,) = protocol.ways
    return evaluate(opened, directory, protocol, way, answers, Options(**options))


def test_scores(opened, tmp_path, saying):
    saying(lambda images, prompt: "Red." if "color" in prompt else "no")
    result = scored(opened, write_shards(tmp_path / "gqa", records()), tmp_path, batch_size=5)
    assert (result.name, result.way.metric, result.score.n) == ("gqa", "exact match", 12)
    assert {kind: one.value for kind, one in result.by["question_type"].items()} == {
        "color": 4 / 6,  # those whose answer is blue are wrong
        "exists": 0.0,
    }
    assert result.score.value == 4 / 12
    assert result.score.interval[0] < result.score.value < result.score.interval[1]
    assert result.best_constant == (4 + 6) / 12
    assert result.best_constant_by_type == {"color": 4 / 6, "exists": 1.0}
    first = result.samples[0]
    assert (first.id, first.question, first.texts) == ("q0", "What color is it?", ("blue",))
    assert result.images and set(result.images) <= {f"q{index}" for index in range(12)}
    assert not result.partial


def test_the_model_itself_answers_whatever_the_batch(opened, tmp_path):
    shards = write_shards(tmp_path / "gqa", records())
    one = scored(opened, shards, tmp_path / "a", batch_size=1, limit=7, greedy=True)
    many = scored(opened, shards, tmp_path / "a", batch_size=5, limit=7, greedy=True)
    assert one.samples == many.samples
    assert many.score.n == 7
    assert all(sample.prediction for sample in many.samples)
    assert len(list((tmp_path / "a").iterdir())) == 2  # answers of other batches are others


def test_what_is_answered_is_not_answered_again(opened, tmp_path, saying):
    shards = write_shards(tmp_path / "gqa", records())
    asked = []
    saying(lambda images, prompt: asked.append(prompt) or "red")
    whole = scored(opened, shards, tmp_path / "a", batch_size=5)
    assert len(asked) == 12
    (folder,) = (tmp_path / "a").iterdir()
    (file,) = folder.glob("answers.*.jsonl")
    lines = file.read_bytes().splitlines(keepends=True)
    # Killed in the middle of the second batch, in the middle of a line.
    file.write_bytes(b"".join(lines[:7]) + lines[7][:40])
    asked.clear()
    again = scored(opened, shards, tmp_path / "a", batch_size=5)
    assert len(asked) == 7  # the second batch as a whole, and the third
    assert again == whole
    asked.clear()
    assert scored(opened, shards, tmp_path / "a", batch_size=5) == whole
    assert asked == []


def test_shuffled_images(opened, tmp_path, saying):
    seen = []
    saying(lambda images, prompt: str(seen.append(images[0])))
    shards = write_shards(tmp_path / "gqa", records())
    result = scored(opened, shards, tmp_path, shuffle_images=True, seed=3)
    own = [record.images[0] for record in records()]
    assert result.shuffled_images
    assert all(given != kept for given, kept in zip(seen, own, strict=True))
    assert Counter(seen) == Counter(own)
    assert all(result.images[f"q{n}"] == seen[n] for n in range(12) if f"q{n}" in result.images)


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


def test_records_without_an_image_are_asked_without(opened, tmp_path, saying):
    saying(lambda images, prompt: str(len(images)))
    written = [Record("gqa", "t", "q0", (), ("Why?",), (Answer("0"),))]
    result = scored(opened, write_shards(tmp_path / "gqa", written), tmp_path)
    assert result.score.value == 1.0
    assert result.by == {}
    assert result.samples[0].question == "Why?"
    assert result.images == {}


def test_a_damaged_image_is_counted_and_the_score_partial(opened, tmp_path, saying):
    saying(lambda images, prompt: "red")
    written = records(4)
    written[1] = replace(written[1], images=(b"no image",))
    out = tmp_path / "out"
    shards = write_shards(tmp_path / "gqa", written)
    result = scored(opened, shards, out)
    assert (result.missing, result.partial, result.score.n) == (1, True, 3)
    assert "not a readable image" in result.samples[1].missing
    assert any(note.startswith("partial: 1 records are missing") for note in result.notes)


def test_no_public_answers(opened, tmp_path, saying):
    saying(lambda images, prompt: "red")
    written = [replace(record, answers=()) for record in records(3)]
    result = scored(opened, write_shards(tmp_path / "gqa", written), tmp_path)
    assert result.score is None
    assert [sample.prediction for sample in result.samples] == ["red"] * 3
    assert result.notes[0] == "3 of 3 records have no public answer and are not scored"


def test_what_cannot_be_scored_is_refused(opened, tmp_path):
    mixed = write_shards(tmp_path / "mixed", records(2) + records(2, dataset="vqav2"))
    with pytest.raises(ValueError, match="a benchmark is of one dataset"):
        scored(opened, mixed, tmp_path)
    with pytest.raises(ValueError, match="is not there"):
        scored(opened, tmp_path / "nowhere", tmp_path)
    with pytest.raises(ValueError, match="must be at least 1"):
        Options(batch_size=0)
    unlisted = write_shards(tmp_path / "signs", records(2, dataset="street_signs"))
    with pytest.raises(ValueError, match="nothing says how 'street_signs' is evaluated"):
        protocol_of(unlisted)
    for dataset, message in (
        ("iconqa", "iconqa q0: the list of candidates is empty"),
        ("visdial", "visdial q0: the list of candidates is empty"),
        ("hateful_memes", "its answer 'blue' is no label of 'yes', 'no'"),
    ):
        shards = write_shards(tmp_path / dataset, records(2, dataset=dataset))
        with pytest.raises(MetricError, match=message):
            scored(opened, shards, tmp_path)


def test_every_benchmark_of_a_directory(base, tmp_path):
    data = tmp_path / "data"
    write_shards(data / "gqa", records(4))
    write_shards(data / "gqa-challenge", records(6))
    write_shards(data / "llava", records(2, dataset="llava_detail"))
    document = evaluate_benchmarks(base, data, None, tmp_path / "out", Options(batch_size=4))
    assert list(document["benchmarks"]) == ["gqa", "gqa-challenge"]
    assert document["benchmarks"]["gqa-challenge"]["n"] == 6
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == document
    assert list(find_benchmarks(data, ["gqa-challenge"])) == [data / "gqa-challenge"]


def test_benchmarks_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="is not there"):
        find_benchmarks(tmp_path / "nowhere", None)
    with pytest.raises(ValueError, match="no benchmark that is scored here"):
        find_benchmarks(tmp_path, None)
    write_shards(tmp_path / "llava", records(2, dataset="llava_detail"))
    with pytest.raises(ValueError, match="no benchmark that is scored here; found: llava"):
        find_benchmarks(tmp_path, None)
    with pytest.raises(ValueError, match="nothing says how 'llava_detail' is evaluated"):
        find_benchmarks(tmp_path, ["llava"])
    with pytest.raises(ValueError, match="holds no benchmark 'gqa'; found: llava"):
        find_benchmarks(tmp_path, ["gqa"])
