"""Conversations as public mixes have them: repeated ids, several images, videos, system turns."""

import json
from pathlib import Path
from typing import Any

import pytest

from ibtrain import cli
from ibtrain.data.preparation.prepare import prepare
from ibtrain.data.records import Answer, Record
from ibtrain.data.shards.records import read_records
from tests.data.conftest import write_image
from tests.data.readers.harness import jpeg, prepared
from tests.data.videos import write_frames

OWN = """name: talk
task: llava_instruct
reader: conversation
splits: {train: {files: [[talk.json], [talk.jsonl]]}}
"""


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw directory with three images and the frames of a video, and talk.yaml beside it."""
    for number, name in enumerate(("bus", "a", "b")):
        write_image(tmp_path / f"raw/{name}.jpg", (20 + number, 12))
    write_frames(tmp_path / "raw/bus_ride", 4)
    (tmp_path / "talk.yaml").write_text(OWN)
    return tmp_path / "raw"


def said(*texts: str, first: str = "human") -> list[dict[str, str]]:
    """Turns that take turns."""
    speakers = ("human", "gpt") if first == "human" else ("gpt", "human")
    return [{"from": speakers[n % 2], "value": text} for n, text in enumerate(texts)]


def talks(raw: Path, *rows: Any) -> tuple[list[Record], list[tuple[str, str]], dict[str, int]]:
    (raw / "talk.json").write_text(json.dumps(list(rows)), encoding="utf-8")
    return prepared(str(raw.parent / "talk.yaml"), raw, "train")


def record(identity: str, instruction: str, answer: str, *images: Path) -> Record:
    return Record(
        dataset="talk",
        task="llava_instruct",
        id=identity,
        images=tuple(jpeg(image) for image in images),
        instructions=(instruction,),
        answers=(Answer(answer),),
        plain=instruction,
        details={"turn": int(identity.partition("#")[0].rpartition("-")[2])},
    )


def test_an_image_has_many_conversations(raw: Path, capsys: pytest.CaptureFixture[str]):
    rows = [
        {"id": "33471", "image": "bus.jpg", "conversations": said(*texts)}
        for texts in (
            ("<image>\nWhat color is the bus?", "White and red."),
            ("<image>\nIs it raining?", "No", "How many people?", "4"),
            ("<image>\nWhat color is the bus?", "White and red."),  # word for word the first
            # Begins as the first does and goes on: never a part of an annotation is left out.
            ("<image>\nWhat color is the bus?", "White and red.", "Sure?", "Yes"),
        )
    ]
    (raw / "talk.json").write_text(json.dumps(rows))
    out = raw.parent / "out"
    command = ["data", "prepare", str(raw.parent / "talk.yaml"), "--raw", str(raw)]
    assert cli.main([*command, "--out", str(out)]) == 0
    bus = raw / "bus.jpg"
    first = "What color is the bus?"
    assert list(read_records(out)) == [
        record("33471-0", first, "White and red.", bus),
        record("33471-0#2", "Is it raining?", "No", bus),
        record("33471-1#2", "Is it raining?\nNo\nHow many people?", "4", bus),
        record("33471-0#3", first, "White and red.", bus),
        record("33471-1#3", f"{first}\nWhite and red.\nSure?", "Yes", bus),
    ]
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"talk: 5 records in 1 shards at {out}; dropped 1 duplicate; 4 renamed, as their id came "
        "before with other content; 0 quarantined"
    )
    report = json.loads((out / "card.json").read_text())["report"]
    assert (report["renamed"], report["dropped"]) == (4, {"duplicate": 1})


def test_images_and_videos_are_found_under_their_keys(raw: Path):
    what = said("<image>\nWhat color?", "Red")
    records, bad, dropped = talks(
        raw,
        {"id": "a", "images": ["bus.jpg"], "conversations": what},
        {
            "id": "b",
            "image": ["a.jpg", "b.jpg"],
            "conversations": said("<image>\n<image>\n1?", "2"),
        },
        {
            "id": "c",
            "image": ["a.jpg", "b.jpg"],
            "conversations": said("Is <image> as <image>?", "No"),
        },
        {"id": "d", "video": "bus_ride", "conversations": said("<video>\nWhere?", "Here")},
        {"id": "e", "videos": ["bus_ride.mp4"], "conversations": said("<image>\nWhere?", "Here")},
        {"id": "f", "images": [], "conversations": said("Hi", "Hello")},
        {"id": "g", "image": "", "conversations": said("Hi", "Hello again")},
        {"id": "h", "image": "sub\\..\\bus.jpg", "conversations": what},
    )
    bus, a, b = (raw / f"{name}.jpg" for name in ("bus", "a", "b"))
    frames = [
        raw / f"bus_ride/{name}" for name in sorted(p.name for p in (raw / "bus_ride").iterdir())
    ]
    assert sorted(records, key=lambda found: found.id) == [
        record("a-0", "What color?", "Red", bus),
        record("b-0", "1?", "2", a, b),
        record("c-0", "Is  as ?", "No", a, b),
        record("d-0", "Where?", "Here", *frames),
        record("e-0", "Where?", "Here", *frames),
        record("f-0", "Hi", "Hello"),
        record("g-0", "Hi", "Hello again"),
    ]
    assert bad == [("h", "the image path 'sub\\\\..\\\\bus.jpg' leaves the image folder")]
    assert dropped == {}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image": None}, "1 x <image> stands in the text for images, of which none is named"),
        ({"Image": "bus.jpg"}, "the key 'Image' is not read; write 'image'"),
        ({"IMAGES": ["bus.jpg"]}, "the key 'IMAGES' is not read; write 'images'"),
        ({"image": "bus.jpg", "images": ["a.jpg"]}, "'image' and 'images' differ"),
        ({"image": "bus.jpg", "video": "bus_ride"}, "names images and a video"),
        ({"videos": ["bus_ride", "b"]}, "names 2 videos"),
        ({"image": {"path": "bus.jpg"}}, "'image' must be a string that is not empty"),
        ({"images": ["a.jpg", ""]}, "'images' must be a list of strings that are not empty"),
        ({"image": "gone.jpg"}, "no image gone.jpg"),
        (
            {"image": "/elsewhere/bus.jpg"},
            "'/elsewhere/bus.jpg' leaves the image folder: it is not",
        ),
        ({"image": "bus.jpg", "conversations": said("<image>\n<image>\nA?", "B")}, "2 x <image>"),
        ({"image": "bus.jpg", "conversations": said("<video>\nA?", "B")}, "1 x <video> stands in"),
        (
            {"conversations": said("<image_00>\nA?", "B")},
            "'<image_00>' stands in the text, and no image",
        ),
        ({"conversations": said("<|image|>A?", "B")}, "'<|image|>' stands in the text"),
        ({"conversations": said("Is <image1> as <image2>?", "B")}, "'<image1>' stands in the text"),
        (
            {"conversations": said("Picture 1: <img>bus.jpg</img>\nA?", "B")},
            "the text names '<img>bus.jpg</img>'",
        ),
        (
            {"img": "bus.jpg", "conversations": said("A?", "B")},
            "'img' names the image 'bus.jpg' and is not read; call it 'image', or say "
            "reader_options: {image: img}",
        ),
        ({"files": ["a.png"], "conversations": said("A?", "B")}, "'files' names the image 'a.png'"),
    ],
)
def test_an_image_that_is_not_there_is_a_bad_annotation(
    raw: Path, changes: dict[str, Any], reason: str
):
    row = {"id": "x", "conversations": said("<image>\nWhat color?", "Red")} | changes
    good = {"id": "good", "conversations": said("Hi", "Hello")}
    records, bad, _ = talks(raw, row, good)
    assert [found.id for found in records] == ["good-0"]
    ((identity, found),) = bad
    assert identity == "x" and reason in found


def test_a_text_is_only_touched_where_an_image_stands_for_the_mark(raw: Path):
    tag = "What does the tag <image> do in <image><url>a.png</url></image>?"
    records, bad, _ = talks(
        raw,
        {"id": "text", "conversations": said(tag, "It shows <image>.")},
        {
            "id": "one",
            "image": "bus.jpg",
            "conversations": said("<image>\nIs <image> a tag?", "Yes"),
        },
        {
            "id": "late",
            "image": "bus.jpg",
            "conversations": said("Hi", "Yes", "So?\n<image>", "Bus"),
        },
        {"id": "none", "image": "bus.jpg", "conversations": said("Colour?", "Red")},
    )
    bus = raw / "bus.jpg"
    assert bad == []
    assert sorted(records, key=lambda found: found.id) == [
        record("late-0", "Hi", "Yes", bus),
        record("late-1", "Hi\nYes\nSo?", "Bus", bus),
        record("none-0", "Colour?", "Red", bus),
        record("one-0", "Is <image> a tag?", "Yes", bus),
        record("text-0", tag, "It shows <image>."),
    ]


def test_turns_without_an_answer_are_counted_and_a_system_turn_goes_first(raw: Path):
    system = {"from": "system", "value": "Be brief."}
    records, bad, dropped = talks(
        raw,
        {"conversations": said("Hello!", "Colour?", "Red", "Sure?", first="gpt")},
        {"image": "bus.jpg", "conversations": [system, *said("<image>\nA?", "B", "C?", "D")]},
        {"system": "Be kind.", "conversations": said("A?", "B")},
        {"conversations": [*said("Lost"), *said("A?", "B", "C?"), *said("D?")]},
        {"conversations": [{"from": "system", "value": " "}, *said("E?", "F")]},
        {"id": 7.0, "conversations": said("Nobody answers")},
        {"conversations": [*said("A?", "B"), system, *said("C?", "D")]},
    )
    bus = raw / "bus.jpg"
    assert sorted(records, key=lambda found: found.id) == [
        record("talk:0-0", "Colour?", "Red"),
        record("talk:1-0", "Be brief.\nA?", "B", bus),
        record("talk:1-1", "Be brief.\nA?\nB\nC?", "D", bus),
        record("talk:2-0", "Be kind.\nA?", "B"),
        record("talk:3-0", "A?", "B"),
        record("talk:4-0", "E?", "F"),
    ]
    assert bad == [
        (
            "talk.json[6]",
            "talk.json[6]: conversations[2]: expected a turn from 'human', found 'system'",
        )
    ]
    assert dropped == {"unanswered turn": 6}


def test_messages_are_read_like_conversations(raw: Path):
    def message(role: str, content: Any) -> dict[str, Any]:
        return {"role": role, "content": content}

    (raw / "talk.jsonl").write_text(
        "\n".join(
            json.dumps(row)
            for row in (
                {
                    "messages": [message("user", "<image>Who?"), message("assistant", "Kane")],
                    "images": ["a.jpg"],
                },
                {
                    "messages": [
                        message("system", "Be brief."),
                        message("user", [{"type": "image"}, {"type": "text", "text": "What?"}]),
                        message("assistant", [{"type": "text", "text": "A bus"}]),
                    ],
                    "images": [str(raw / "bus.jpg")],
                },
                {
                    "messages": [
                        message(
                            "user",
                            [
                                {"type": "text", "text": "What?"},
                                {"type": "image", "image": "b.jpg"},
                            ],
                        ),
                        message("assistant", "B"),
                    ]
                },
                {
                    "messages": [
                        message("user", "C?") | {"image": "b.jpg"},
                        message("assistant", "C"),
                    ]
                },
                {"messages": [message("user", "D?"), message("tool", "{}")]},
            )
        )
    )
    records, bad, _ = prepared(str(raw.parent / "talk.yaml"), raw, "train")
    a, b, bus = (raw / f"{name}.jpg" for name in ("a", "b", "bus"))
    assert sorted(records, key=lambda found: found.id) == [
        record("talk:0-0", "Who?", "Kane", a),
        record("talk:1-0", "Be brief.\nWhat?", "A bus", bus),
        record("talk:2-0", "What?", "B", b),
        record("talk:3-0", "C?", "C", b),
    ]
    assert bad == [
        (
            "talk.jsonl:5",
            "talk.jsonl:5: messages[1]: expected a turn from 'human' or 'user', 'gpt' or "
            "'assistant', or 'system', found 'tool'",
        )
    ]


def test_a_missing_image_is_not_replaced_by_one_of_coco_with_its_number(tmp_path: Path):
    raw = tmp_path / "raw"
    write_image(tmp_path / "coco/images/train2014/COCO_train2014_000000107912.jpg")
    names = {
        "vg1": "vg/VG_100K/107912.jpg",
        "sam": "sam/images/000000107912.jpg",
        "short": "107912.jpg",
        "in": "coco/train2017/000000107912.jpg",
        "named": "anything/COCO_val2014_000000107912.jpg",
        "plain": "000000107912.jpg",
    }
    raw.mkdir()
    rows = [
        {"id": key, "image": name, "conversations": said(f"<image>\n{key}?", "A red door.")}
        for key, name in names.items()
    ]
    (raw / "conversation_58k.json").write_text(json.dumps(rows))
    records, bad, _ = prepared("llava_conversation", raw, "train")
    assert sorted(found.id for found in records) == ["in-0", "named-0", "plain-0"]
    roots = "RAW/images, RAW/../coco/images, RAW"
    assert bad == [
        (key, f"no image {names[key]}; looked in {roots}") for key in ("vg1", "sam", "short")
    ]


def test_where_all_are_bad_the_first_reason_and_the_file_are_told(raw: Path):
    rows = [{"id": n, "image": "gone.jpg", "conversations": said("A?", "B")} for n in (1, 2)]
    (raw / "talk.json").write_text(json.dumps(rows))
    out = raw.parent / "out"
    for budget in (0.001, 1.0):
        with pytest.raises(ValueError, match=r"the first is 1: no image gone\.jpg; looked"):
            prepare(str(raw.parent / "talk.yaml"), raw, out, progress=False, budget=budget)
        lines = [json.loads(line) for line in (out / "quarantine.jsonl").open()]
        assert [line["id"] for line in lines] == ["1", "2"]
    (raw / "talk.json").write_text("[]")
    with pytest.raises(ValueError, match=r"talk \(train\): talk\.json holds no annotation"):
        prepare(str(raw.parent / "talk.yaml"), raw, raw.parent / "other", progress=False)
    (raw / "talk.json").write_text(json.dumps([{"id": 1, "conversations": []}] * 2))
    with pytest.raises(ValueError, match=r"not one record is left of 2; dropped 2 no turns$"):
        prepare(str(raw.parent / "talk.yaml"), raw, raw.parent / "third", progress=False)
