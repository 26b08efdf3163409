"""Lists of one's own as people have them: spreadsheets, other encodings, numbers, other paths."""

import json
from pathlib import Path

import pytest

from ibtrain import cli
from ibtrain.data import catalog, readers
from ibtrain.data.preparation.prepare import prepare
from ibtrain.data.readers import Rejected
from ibtrain.data.shards.records import read_records
from tests.data.conftest import write_image

OWN = """name: mine
task: image_question_answering
reader: {reader}
prompts: {{visual_question_answering: "Question: {{question}} Short answer:", captioning: "Say:"}}
templates: [visual_question_answering, captioning]
splits: {{train: {{files: [[{file}]]}}}}
"""
QUESTION = {"image": "a.jpg", "question": "How many?"}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_image(tmp_path / "raw/images/a.jpg")
    write_image(tmp_path / "raw/images/sub/b.jpg")
    return tmp_path / "raw"


def dataset(raw: Path, file: str, content: str | bytes, reader: str = "question_answer") -> Path:
    """Writes the list and mine.yaml, which it gives the path of."""
    data = content.encode() if isinstance(content, str) else content
    (raw / file).write_bytes(data)
    path = raw.parent / "mine.yaml"
    path.write_text(OWN.format(file=file, reader=reader))
    return path


def found(raw: Path, file: str, content: str | bytes, reader: str = "question_answer") -> list[str]:
    """Each example as "ID IMAGE: QUESTION ANSWERxWEIGHT", each rejection as its reason."""
    entry = catalog.load_entry(dataset(raw, file, content, reader))
    told = []
    for item in readers.read(raw, "train", entry):
        if isinstance(item, Rejected):
            told.append(item.reason if item.bad else f"({item.reason})")
            continue
        images = (item.image,) if item.image else item.images
        names = "+".join(str(image.relative_to(raw)) for image in images if image)
        answers = " ".join(f"{answer.text}x{answer.weight:g}" for answer in item.answers)
        told.append(f"{item.id} {names}: {item.slots.get('question', '')} {answers}")
    return told


def test_none_of_two_questions_with_an_id_is_lost(raw: Path, capsys: pytest.CaptureFixture[str]):
    path = dataset(
        raw,
        "list.csv",
        "id,image,question,answer\n7,a.jpg,What?,red\n7,a.jpg,Where?,left\n7,a.jpg,What?,red\n",
    )
    out = raw.parent / "out"
    assert cli.main(["data", "prepare", str(path), "--raw", str(raw), "--out", str(out)]) == 0
    assert [(one.id, one.plain, one.answers[0].text) for one in read_records(out)] == [
        ("7", "What?", "red"),
        ("7#2", "Where?", "left"),
    ]
    assert "dropped 1 duplicate; 1 renamed, as their id came before with other content" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"answer": 2}, "2x1"),
        ({"answers": [2, 2, 3]}, "2x2 3x1"),
        ({"answer": 2.5}, "2.5x1"),
        ({"answers": ["two", 2]}, "twox1 2x1"),
        ({"answers": [{"answer": 4}, {"answer": "4"}]}, "4x2"),
        ({"answer": True}, "'answer' is true, which may mean a word or a mark; write the word"),
        ({"answers": [False, 1]}, "'answers' is false, which may mean"),
        ({"answers": [{"answer": True}]}, "answers[0]: 'answer' is true, which may mean"),
        ({"answer": float("nan")}, "'answer' must be a text or a finite number"),
        ({"answers": ["a", None]}, "'answers' must be a text, a number or a list of them"),
        ({"answer": {"text": "a"}}, "'answer' must be a text, a number or a list of them"),
    ],
)
def test_numbers_are_their_text(raw: Path, answer: dict[str, object], expected: str):
    (told,) = found(raw, "list.json", json.dumps([QUESTION | answer]))
    assert expected in told


def test_captions_may_be_numbers(raw: Path):
    rows = [{"image": "a.jpg", "caption": 7}, {"Image": "a.jpg", "CAPTION": "A house"}]
    told = found(raw, "list.jsonl", "\n".join(map(json.dumps, rows)), "caption_pairs")
    assert told == ["0 images/a.jpg:  7x1", "1 images/a.jpg:  A housex1"]


ONE = '{"image": "a.jpg", "question": "Q?", "answer": "A"}'
TWO = ["0 images/a.jpg: Q? Ax1", "1 images/a.jpg: Q? Ax1"]


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("list.json", f"{ONE}\n{ONE}\n", TWO),
        ("list.json", f"\n  {ONE}  \r\n\r\n{ONE}", TWO),
        ("list.json", ONE, TWO[:1]),
        ("list.json", json.dumps(json.loads(ONE), indent=1) * 2, TWO),
        ("list.jsonl", f"[{ONE},\n {ONE}]", TWO),
        ("list.jsonl", f"[{ONE}, {ONE}]\n", TWO),
        (
            "list.json",
            f"{ONE}\n{{broken\n{ONE}",
            [TWO[0], "list.json:2: not readable as JSON: Expecting", "2 images/a.jpg: Q? Ax1"],
        ),
    ],
)
def test_json_lines_and_lists_are_read_whatever_the_name(
    raw: Path, file: str, text: str, expected: list[str]
):
    told = found(raw, file, text)
    assert len(told) == len(expected)
    assert all(line.startswith(wanted) for line, wanted in zip(told, expected, strict=True))


@pytest.mark.parametrize(
    "text", ['{{"data": [{0}], "version": 1}}', '{{\n"info": {{}},\n"annotations": [\n{0}\n]\n}}']
)
def test_a_list_within_an_object_is_named(raw: Path, text: str):
    with pytest.raises(
        ValueError, match=r"an object; save its list '(data|annotations)' by itself"
    ):
        found(raw, "list.json", text.format(ONE))


@pytest.mark.parametrize(
    "text",
    [
        "image;question;answer\na.jpg;Q?;A\na.jpg;Q?;A\n",
        "sep=;\r\nimage;question;answer\r\na.jpg;Q?;A\r\na.jpg;Q?;A\r\n",
        '\ufeff"sep=;"\nimage;question;answer\na.jpg;Q?;A\na.jpg;Q?;A',
        "Image,Question,Answer\na.jpg,Q?,A\na.jpg,Q?,A\n",
        "IMAGE ; Question;answers\na.jpg;Q?;A\na.jpg;Q?;A\n",
        "image,question,answer,,\na.jpg,Q?,A,,\na.jpg,Q?,A\n",
        ",image,question,answer\n0,a.jpg,Q?,A\n1,a.jpg,Q?,A\n",
        "image\tquestion\tanswer\na.jpg\tQ?\tA\na.jpg\tQ?\tA\t\t\n",
        "image|question|answer\na.jpg|Q?|A\na.jpg|Q?|A\n",
        "\n\nimage,question,answer\n a.jpg , Q? , A\na.jpg,Q?,A\n",
        '"image";"question";"answer"\n"a.jpg";"Q?";"A"\n"a.jpg";"Q?";"A"\n',
    ],
)
def test_tables_as_spreadsheets_write_them(raw: Path, text: str):
    assert found(raw, "list.csv", text) == TWO


def test_rows_and_cells_that_cannot_be_told_are_named(raw: Path):
    told = found(
        raw,
        "list.csv",
        "image,question,answer,,\n,,,,\na.jpg,Q?,red, white,\n,,,\na.jpg,Q?,A\na.jpg,Q?,A,,,B\n",
    )
    assert told == [
        "(empty row)",
        "list.csv:3: ' white' stands in a column without a name; name it, or put a cell that holds "
        "a separator in quotes",
        "(empty row)",
        "3 images/a.jpg: Q? Ax1",
        "list.csv:6: 6 cells, the header names 5",
    ]
    assert found(raw, "list.tsv", "image\tquestion\tanswer\na.jpg\tA, B; C?\tA\n") == [
        "0 images/a.jpg: A, B; C? Ax1"
    ]


@pytest.mark.parametrize("file", ["list.csv", "list.json", "list.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "cp1252", "utf-8-sig"])
def test_other_encodings_are_named_with_the_remedy(raw: Path, file: str, encoding: str):
    row = '{"image": "a.jpg", "question": "Où?", "answer": "là"}'
    text = {
        "list.csv": "image,question,answer\na.jpg,Où?,là\n",
        "list.json": f"[{row}]",
        "list.jsonl": f"{row}\n",
    }[file]
    if encoding == "utf-8-sig":
        assert found(raw, file, text.encode(encoding)) == ["0 images/a.jpg: Où? làx1"]
        return
    try:
        told = "".join(found(raw, file, text.encode(encoding)))
    except ValueError as error:
        told = str(error)
    assert file in told and "save it as UTF-8 (in a spreadsheet: CSV UTF-8)" in told
    assert "UTF-16" in told if encoding.startswith("utf") else "utf-8" in told.lower()


def test_paths_of_images_as_people_write_them(raw: Path):
    (raw.parent / "linked").symlink_to(raw)
    names = [
        "sub\\b.jpg",
        ".\\sub\\b.jpg",
        str(raw / "images/sub/b.jpg"),
        str(raw.parent / "linked/images/sub/b.jpg"),
        "C:\\data\\sub\\b.jpg",
        "..\\..\\secret.jpg",
        str(raw.parent / "secret.jpg"),
        f"{raw}/images/../../secret.jpg",
        "/",
    ]
    write_image(raw.parent / "secret.jpg")
    rows = [QUESTION | {"image": name, "answer": 1} for name in names]
    told = found(raw.parent / "linked", "list.json", json.dumps(rows))
    linked = raw.parent / "linked"
    assert [line.partition(":")[0] for line in told[:4]] == [
        f"{number} images/sub/b.jpg" for number in range(4)
    ]
    assert told[4] == f"no image C:\\data\\sub\\b.jpg; looked in {linked}/images, {linked}"
    assert all("leaves the image folder" in line for line in told[5:])
    assert told[6].endswith(f"it is not in {linked}; write it as seen from there")


def test_several_images_of_a_question_come_in_order(raw: Path):
    rows = [
        QUESTION | {"image": ["sub/b.jpg", "a.jpg"], "answer": "2"},
        {"images": ["a.jpg"], "question": "How many?", "answer": "1"},
        QUESTION | {"image": [], "answer": "0"},
        {"image": "a.jpg", "question": "<image>\nIs <image> a tag?", "answer": "yes"},
    ]
    path = dataset(raw, "list.json", json.dumps(rows))
    prepare(str(path), raw, raw.parent / "out", progress=False, budget=0.5)
    records = {one.id: one for one in read_records(raw.parent / "out")}
    assert records.pop("3").plain == "Is <image> a tag?"
    images = {one.id: one.images for one in records.values()}
    a, b = ((raw / f"images/{name}").read_bytes() for name in ("a.jpg", "sub/b.jpg"))
    assert images == {"0": (b, a), "1": (a,)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "a pointer of Git LFS.*pull",
        ),
        (b"", "it is empty"),
        (b"\n<!DOCTYPE html><html>404</html>", "a web page"),
        (b"<?xml version='1.0'?><svg/>", "XML"),
        (b"\0\0\0\x20ftypavif" + b"\0" * 40, "AVIF or HEIC"),
        (b"no image", "none of JPEG, PNG"),
    ],
)
def test_what_stands_in_an_images_place_is_told(raw: Path, content: bytes, message: str):
    (raw / "images/a.jpg").write_bytes(content)
    path = dataset(raw, "list.json", f"[{ONE}]")
    with pytest.raises(ValueError, match=rf"the first is 0: RAW/images/a\.jpg: .*{message}"):
        prepare(str(path), raw, raw.parent / "out", progress=False, budget=1.0)
    assert len((raw.parent / "out/quarantine.jsonl").read_text().splitlines()) == 1


def test_a_pointer_in_the_place_of_a_list_is_told(raw: Path):
    for file in ("list.json", "list.jsonl", "list.csv"):
        with pytest.raises(ValueError, match=rf"{file} is a pointer of Git LFS .*git lfs pull"):
            found(raw, file, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def test_a_few_bad_ones_are_told_with_the_first_reason(
    raw: Path, capsys: pytest.CaptureFixture[str]
):
    rows = [QUESTION | {"answer": 1}, QUESTION | {"image": "gone.jpg", "answer": 1}]
    path = dataset(raw, "list.json", json.dumps(rows))
    out = raw.parent / "out"
    command = ["data", "prepare", str(path), "--raw", str(raw), "--out", str(out)]
    assert cli.main([*command, "--budget", "0.5"]) == 0
    first = "gone.jpg: no image gone.jpg; looked in RAW/images, RAW"
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"mine: 1 records in 1 shards at {out}; dropped none; 1 quarantined (the first is {first}; "
        f"all are in {out}/quarantine.jsonl)"
    )
    assert json.loads((out / "card.json").read_text())["report"]["first_bad"] == first


@pytest.mark.parametrize("file", ["list.json", "list.jsonl"])
def test_an_entry_that_says_two_things_under_one_key_is_bad(raw: Path, file: str):
    entries = [
        '{"image": "a.jpg", "question": "Q?", "answer": "red", "answer": "blue"}',
        '{"image": "a.jpg", "question": "Q?", "answer": "left"}',
    ]
    content = f"[{', '.join(entries)}]" if file == "list.json" else "\n".join(entries)
    told = found(raw, file, content)
    assert told[0].endswith(": the key 'answer' stands twice")
    assert [one.partition(" ")[2] for one in told[1:]] == ["images/a.jpg: Q? leftx1"]


def test_a_key_that_stands_twice_within_a_turn_is_bad(raw: Path):
    turns = '[{"from": "human", "value": "Q?", "value": "R?"}, {"from": "gpt", "value": "A"}]'
    entry = f'[{{"id": "1", "image": "a.jpg", "conversations": {turns}}}]'
    (told,) = found(raw, "list.json", entry, "conversation")
    assert told.endswith("conversations[0]: the key 'value' stands twice")
