import json
from pathlib import Path

import pytest
import yaml

from ibtrain.cli import main
from ibtrain.data.catalog import load_entry
from ibtrain.data.describe import describe
from ibtrain.data.shards.records import read_records
from tests.data.conftest import write_image

QUESTIONS = [("a.png", "What color is it?", "red"), ("b/c.png", "Is there a dog?", "no")]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    for name in ("a.png", "b/c.png"):
        write_image(tmp_path / "My Signs/photos" / name)
    return tmp_path / "My Signs"


def csv(path: Path, header: str, rows=QUESTIONS) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{','.join(row)}\n" for row in [header.split(","), *rows]))


def jsonl(path: Path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.usefixtures("logger_as_it_was")
def test_from_a_folder_to_shards_without_an_editor(raw, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    csv(raw / "list.csv", "file,query,label")
    assert main(["data", "describe", str(raw), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {
        "file": "my_signs.yaml",
        "name": "my_signs",
        "reader": "question_answer",
        "columns": {"image": "file", "question": "query", "answer": "label"},
        "splits": {"train": "list.csv"},
        "examples": 2,
        "rejected": 0,
        "first_reason": "",
    }
    content = yaml.safe_load(Path("my_signs.yaml").read_text())
    assert content == {
        "name": "my_signs",
        "task": "image_question_answering",
        "reader": "question_answer",
        "reader_options": {"image": "file", "question": "query", "answer": "label"},
        "image_roots": ["photos"],
        "splits": {"train": {"files": [["list.csv"]]}},
        "prompts": {"visual_question_answering": "Question: {question} Short answer:"},
        "templates": ["visual_question_answering"],
    }
    assert load_entry(Path("my_signs.yaml")).name == "my_signs"
    words = ["data", "prepare", "my_signs.yaml", "--raw", str(raw), "--out", "shards"]
    assert main(words) == 0
    records = list(read_records(Path("shards")))
    assert sorted((r.plain, r.answers[0].text) for r in records) == [
        ("Is there a dog?", "no"),
        ("What color is it?", "red"),
    ]
    capsys.readouterr()
    assert main(["data", "describe", str(raw)]) == 2
    assert "my_signs.yaml exists; name another file with --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("header", "rows", "columns"),
    [
        ("image,question,answer", QUESTIONS, ["image", "question", "answer"]),
        ("Image Path,Prompt,Response", QUESTIONS, ["Image Path", "Prompt", "Response"]),
        # Told by what they hold: image files, question marks, the one that is left.
        ("x,y,z", QUESTIONS, ["x", "y", "z"]),
        ("answer,image,question", [("red", "a.png", "Why")], ["image", "question", "answer"]),
    ],
)
def test_columns_of_questions(raw, tmp_path, header, rows, columns):
    csv(raw / "list.csv", header, rows)
    found = describe(raw, tmp_path / "out.yaml")
    assert found.columns == dict(zip(("image", "question", "answer"), columns, strict=True))
    assert found.examples == len(rows) and found.rejected == 0


def test_captions_conversations_and_lists_of_answers(raw, tmp_path):
    jsonl(raw / "list.jsonl", [{"id": 1, "file": "photos/a.png", "text": ["one", "two"]}])
    found = describe(raw, tmp_path / "captions.yaml", "mine")
    assert (found.reader, found.columns) == (
        "caption_pairs",
        {"image": "file", "caption": "text"},
    )
    assert (found.examples, found.name) == (2, "mine")
    entry = load_entry(tmp_path / "captions.yaml")
    assert entry.image_roots == (".",) and entry.templates == ("captioning",)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A sign."}]
    jsonl(raw / "list.jsonl", [{"id": "1", "image": "a.png", "conversations": turns}])
    found = describe(raw, tmp_path / "conversation.yaml")
    assert (found.reader, found.examples) == ("conversation", 1)
    answers = [{"answer": "a red sign that stands at the road", "worker": 1}]
    row = {"image": "a.png", "question": "What?", "answers": answers}
    jsonl(raw / "list.jsonl", [row])
    assert describe(raw, tmp_path / "questions.yaml").examples == 1
    entry = load_entry(tmp_path / "questions.yaml")
    assert entry.reader_options == {} and entry.evaluation_prompt == "{question}"


def test_splits_are_told_by_their_files(raw, tmp_path):
    csv(raw / "annotations/signs_train.csv", "image,question,answer")
    csv(raw / "annotations/signs-dev.csv", "image,question,answer")
    csv(raw / "test.csv", "image,question", [row[:2] for row in QUESTIONS])
    found = describe(raw, tmp_path / "out.yaml")
    assert found.splits == {"train": "signs_train.csv", "val": "signs-dev.csv", "test": "test.csv"}
    entry = load_entry(tmp_path / "out.yaml")
    assert [split.labelled for split in entry.splits.values()] == [True, True, False]
    assert found.examples == 6


def test_images_in_several_folders_and_one_that_is_missing(raw, tmp_path):
    write_image(raw / "more/d.png")
    rows = [*QUESTIONS, ("d.png", "What?", "it"), ("lost.png", "What?", "it")]
    csv(raw / "list.csv", "image,question,answer", rows)
    found = describe(raw, tmp_path / "out.yaml")
    assert load_entry(tmp_path / "out.yaml").image_roots == ("photos", "more")
    assert (found.examples, found.rejected) == (3, 1) and "lost.png" in found.first_reason


def test_what_cannot_be_described_is_said(raw, tmp_path):
    def refusal(**options) -> str:
        with pytest.raises(ValueError) as refused:
            describe(options.pop("raw", raw), options.pop("out", tmp_path / "out.yaml"), **options)
        assert not (tmp_path / "out.yaml").exists()
        return str(refused.value)

    assert "holds no list: put a .csv, .jsonl or .json file" in refusal()
    csv(raw / "a.csv", "image,question,answer")
    csv(raw / "b.csv", "image,question,answer")
    assert "could both be the split 'train'" in refusal()
    (raw / "b.csv").unlink()
    assert "may have lower-case letters" in refusal(name="My Signs")
    assert "name a .yaml file" in refusal(out=tmp_path / "out.txt")
    assert "is not a folder" in refusal(raw=raw / "a.csv")
    csv(raw / "val.csv", "image,query,answer")
    assert "has other columns than" in refusal()
    (raw / "val.csv").unlink()
    csv(raw / "a.csv", "image,x,y,z", [("a.png", "one", "two", "three")])
    assert "which column holds questions and answers, or captions? There are 'x', 'y', 'z'" in (
        refusal()
    )
    csv(raw / "a.csv", "image,question,answer", [("/etc/passwd", "?", "a"), ("../a.png", "?", "a")])
    assert "no column names images that are in the folder" in refusal()
    (raw / "a.csv").write_text("image,question,answer\n")
    assert "has no entry" in refusal()
    (raw / "a.csv").write_bytes(b"\xff\xfe\x00")
    assert "a.csv" in refusal()
    (tmp_path / "none").mkdir()
    csv(tmp_path / "none/a.csv", "image,question,answer")
    assert "holds no image" in refusal(raw=tmp_path / "none")
