"""A dataset of one's own: one YAML file, its templates, lists in JSON, JSON Lines or CSV."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ibtrain import cli
from ibtrain.data import catalog, readers
from ibtrain.data.preparation.prepare import prepare
from ibtrain.data.records import Answer, Record
from ibtrain.data.shards.records import read_records
from tests.data.conftest import write_image
from tests.data.readers.harness import instructions, jpeg, prepared

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/own_dataset"
RECIPES = ROOT / "ibtrain/recipes"
OWN = {
    "name": "mine",
    "task": "image_question_answering",
    "reader": "question_answer",
    "prompts": {"visual_question_answering": "Question: {question} Short answer:"},
    "templates": ["visual_question_answering"],
    "splits": {"train": {"files": [["list.json"]]}},
}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes mine.yaml, with changes, and raw/ with one image and the annotations."""

    def write_all(annotations: str, file: str = "list.json", /, **changes: object) -> Path:
        write_image(tmp_path / "raw/images/a.png")
        (tmp_path / "raw" / file).write_text(annotations, encoding="utf-8")
        path = tmp_path / "mine.yaml"
        content = {**OWN, "splits": {"train": {"files": [[file]]}}, **changes}
        path.write_text(yaml.safe_dump(content))
        return path

    return write_all


def test_the_example_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    raw = Path(shutil.copytree(EXAMPLE / "raw", tmp_path / "raw"))
    for number, name in enumerate(("stop", "one_way"), start=20):
        write_image(raw / f"photos/{name}.jpg", (number, 12))
    out = tmp_path / "out"
    arguments = ["--raw", str(raw), "--out", str(out), "--json"]
    assert cli.main(["data", "prepare", str(EXAMPLE / "street_signs.yaml"), *arguments]) == 0
    written = json.loads(capsys.readouterr().out)
    assert {key: written[key] for key in ("written", "dropped", "quarantined", "shards")} == {
        "written": 3,
        "dropped": 0,
        "quarantined": 0,
        "shards": 1,
    }
    templates = yaml.safe_load((EXAMPLE / "street_signs_templates.yaml").read_text())["templates"]

    def record(photo: str, identity: str, question: str, *answers: Answer) -> Record:
        return Record(
            dataset="street_signs",
            task="question_answering_with_reading",
            id=identity,
            images=(jpeg(raw / f"photos/{photo}.jpg"),),
            instructions=tuple(text.replace("{question}", question) for text in templates),
            answers=answers,
            form="visual_question_answering",
            plain=question,
        )

    assert sorted(read_records(out), key=lambda record: record.id) == [
        record("stop", "0", "What does the sign say?", Answer("stop")),
        record("one_way", "1", "Which way may one drive, if any?", Answer("to the right")),
        record("stop", "2", "What shape is it?", Answer("octagon")),
    ]
    prepare(str(EXAMPLE / "street_signs.yaml"), raw, tmp_path / "val", split="val", progress=False)
    assert list(read_records(tmp_path / "val")) == [
        record("stop", "0", "Is it red?", Answer("yes", 2.0), Answer("Yes", 1.0)),
        record("one_way", "1", "Which colour?", Answer("blue")),
    ]
    mixture = tmp_path / "recipe.yaml"
    content = yaml.safe_load((RECIPES / "toy.yaml").read_text(encoding="utf-8"))
    content["data"]["mixture"] = [{"dataset": "street_signs", "path": str(out)}]
    content["data"]["epoch_samples"] = 64  # a global batch
    mixture.write_text(yaml.safe_dump(content))
    assert cli.main(["data", "mixture", str(mixture), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["datasets"]
    assert (row["name"], row["size"], row["share"]) == ("street_signs", 3, 1.0)


def test_questions_in_json_with_keys_as_they_are(write: Write, tmp_path: Path):
    rows = [
        {"id": "x", "image": "a.png", "question": "Was?", "answers": ["Haus", "Haus", "Hütte"]},
        {"image": "a.png", "question": "A {brace}?", "answer": "{}"},
        {"image": "a.png", "question": "Objects?", "answers": [{"answer": "yes"}, {"answer": ""}]},
        {"image": "a.png", "question": "None?", "answer": ""},
        {"image": "a.png", "question": "A number?", "answer": 5},
        {"image": "b.png", "question": "Where?", "answer": "here"},
        "text",
    ]
    raw = tmp_path / "raw"
    path = write(json.dumps(rows))
    records, quarantine, dropped = prepared(str(path), raw, "train")
    image = (jpeg(raw / "images/a.png"),)

    def record(identity: str, question: str, *answers: Answer) -> Record:
        return Record(
            dataset="mine",
            task="image_question_answering",
            id=identity,
            images=image,
            instructions=instructions("visual_question_answering", question=question),
            answers=answers,
            form="visual_question_answering",
            plain=question,
        )

    assert records == [
        record("x", "Was?", Answer("Haus", 2.0), Answer("Hütte", 1.0)),
        record("1", "A {brace}?", Answer("{}")),
        record("2", "Objects?", Answer("yes")),
        record("4", "A number?", Answer("5")),
    ]
    assert quarantine == [
        ("b.png", "no image b.png; looked in RAW/images, RAW"),
        ("list.json[6]", "list.json[6]: expected an object, found 'text'"),
    ]
    assert dropped == {"no answer": 1}


def test_questions_are_generated_from_a_list(write: Write, tmp_path: Path):
    path = write(
        "image,question,answer\na.png,What is it?,a house\n",
        "list.csv",
        reader_options={"generate": "question"},
        prompts={"question_generation": "Answer: {answer}. Question:"},
        templates=["question_generation"],
    )
    (record,), _, _ = prepared(str(path), tmp_path / "raw", "train")
    assert (record.form, record.answers) == ("question_generation", (Answer("What is it?"),))
    assert record.instructions[0] == "Answer: a house. Question:"


def test_captions_and_conversations(write: Write, tmp_path: Path):
    path = write(
        '{"file": "a.png", "text": ["One", "Two"]}\n{"file": "a.png", "text": "Three"}\n',
        "list.jsonl",
        reader="caption_pairs",
        reader_options={"image": "file", "caption": "text"},
        prompts={"captioning": "Describe:"},
        templates=["captioning"],
    )
    records, _, _ = prepared(str(path), tmp_path / "raw", "train")
    assert [(record.id, record.answers[0].text) for record in records] == [
        ("0-0", "One"),
        ("0-1", "Two"),
        ("1", "Three"),
    ]
    shutil.rmtree(tmp_path / "mine-train")
    said = '[{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]'
    path = write(
        f'{{"id": "t", "conversations": {said}}}\n',
        "talk.jsonl",
        reader="conversation",
        prompts={},
        templates=[],
    )
    (record,), _, _ = prepared(str(path), tmp_path / "raw", "train")
    assert (record.images, record.instructions) == ((), ("Hi",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"reader": "question_answers"},
            r"mine.yaml: reader: there is no 'question_answers'; .*question_answer",
        ),
        (
            {"reader_options": {"imge": "x"}},
            r"mine.yaml: reader_options: 'imge' is no option .* there are: image",
        ),
        (
            {"reader_options": {"generate": "answer"}},
            r"mine.yaml: reader_options.generate: may be 'question'",
        ),
        ({"prompt": {}}, r"mine.yaml: prompt: unknown key; did you mean 'prompts'"),
        ({"splits": {}}, r"mine.yaml: splits: "),
        ({"splits": {"train": {"file": []}}}, r"mine.yaml: splits.train.files: .*required"),
        ({"name": "My Data"}, r"mine.yaml: name: "),
        ({"templates": ["visual_question"]}, r"no templates for the form 'visual_question'"),
        ({"templates": ["own.yaml"]}, r"own.yaml cannot be read"),
        ({"templates": []}, r"mine.yaml: templates: none for the form 'visual_question_answering'"),
        ({"templates": ["captioning"]}, r"mine.yaml: prompts: no prompt for the form 'captioning'"),
        (
            {"prompts": {"visual_question_answering": "{qestion}"}},
            r"mine.yaml: prompts.visual_question_answering: unknown slot 'qestion'",
        ),
        ({"prompts": {"visual_question_answering": "{question"}}, r"mine.yaml: prompts: .*brace"),
        (
            {"prompts": {"captioning": "Say:"}, "templates": ["captioning"]},
            r"mine.yaml: prompts: none for the form 'visual_question_answering'",
        ),
    ],
)
def test_what_is_wrong_is_told_with_file_key_and_remedy(
    write: Write, tmp_path: Path, changes: dict[str, object], message: str
):
    path = write('[{"image": "a.png", "question": "Q?", "answer": "A"}]', **changes)
    with pytest.raises(ValueError, match=message) as error:
        prepare(str(path), tmp_path / "raw", tmp_path / "out", progress=False)
    # What a reader's examples lack is seen when the first of them is rendered.
    assert "which its reader" in str(error.value) or not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "name: [",
        "!!timestamp x",
        "!!bool x",
        "name: 2001-99-99",
        "? [a]\n: b",
        "\0",
        "- a",
    ],
)
def test_a_file_that_is_none_is_told(tmp_path: Path, text: str):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"mine\.yaml"):
        catalog.load_entry(path)


def test_the_list_must_have_a_known_form(write: Write, tmp_path: Path):
    path = write("x", "list.xlsx")
    with pytest.raises(ValueError, match=r"list\.xlsx: a list is read from \.json, \.jsonl, \.csv"):
        list(readers.read(tmp_path / "raw", "train", catalog.load_entry(path)))
