"""VisDial: every round with its history and a hundred answers to rank."""

import json
from pathlib import Path
from typing import Any

from ibtrain.data.records import Answer, Record
from tests.data.readers.harness import FIXTURES, jpeg, prepared, raw_directory

ANSWERS = json.loads(
    (FIXTURES / "visdial/official/visdial_1.0_val.json").read_text(encoding="utf-8")
)["data"]["answers"][:106]


def choices(first: int) -> list[str]:
    """A hundred of the 106 answers that are texts, from `first` on and round the end."""
    return (ANSWERS[first:] + ANSWERS)[:100]


def record(
    image: bytes,
    image_id: str,
    number: int,
    history: str,
    question: str,
    answer: str | None,
    **details: Any,
) -> Record:
    return Record(
        dataset="visdial",
        task="visual_dialog",
        id=f"{image_id}-{number}",
        images=(image,),
        instructions=(f"Dialog history: {history}\n Question: {question} Short answer:",),
        answers=() if answer is None else (Answer(answer),),
        form="dialog",
        plain=f"{history} {question}",
        details={"image_id": image_id, "round": number, **details},
    )


def test_every_round_is_asked_with_what_was_said_before(tmp_path: Path):
    raw = raw_directory("visdial/official", tmp_path)
    records, quarantine, dropped = prepared("visdial", raw, "val")
    caption = "a bedroom is filled with lots of posters and a busy computer desk"
    first = f"{caption} Question: is the photo in color Answer: yes it is"
    second = f"{first} Question: is it well lit Answer: no"
    image = jpeg(raw / "images/VisualDialog_val2018/VisualDialog_val2018_000000185565.jpg")
    other = jpeg(raw / "VisualDialog_val2018/VisualDialog_val2018_000000284024.jpg")
    assert len(ANSWERS) == len(set(ANSWERS)) == 106
    again = records.pop(3)
    assert (again.id, again.details["caption"]) == ("185565-1#2", "the same image again")
    assert records == [
        record(
            image,
            "185565",
            1,
            caption,
            "is the photo in color",
            "yes it is",
            caption=caption,
            choices=choices(0),
            correct_choice=11,
        ),
        record(
            image,
            "185565",
            2,
            first,
            "is it well lit",
            "no",
            caption=caption,
            choices=choices(50),
            correct_choice=57,
        ),
        record(
            image,
            "185565",
            3,
            second,
            "do you see windows",
            "i don't see windows",
            caption=caption,
            choices=choices(15),
            correct_choice=0,
        ),
        record(
            other,
            "284024",
            1,
            "une cour très ensoleillée",
            "is it day or night 🌙",
            "day time",
            caption="une cour très ensoleillée",
            choices=choices(32),
            correct_choice=0,
        ),
    ]
    file = "visdial_1.0_val.json"
    missing, *rest = quarantine
    assert missing[0] == "404404"
    assert missing[1].startswith("no image VisualDialog_val2018_000000404404.jpg; looked in RAW/")
    assert rest == [
        ("284024", f"{file}[4]: dialog[0]: 'gt_index' points to another option than 'answer'"),
        ("284024", f"{file}[5]: dialog[1]: 'question' holds an index that is none of 7 texts"),
        (
            "284024",
            f"{file}[6]: dialog[0]: 'answer_options' points to text 107, which is none or empty",
        ),
    ]
    assert dropped == {"no turns": 1}


def test_the_test_split_asks_its_last_round_alone(tmp_path: Path):
    raw = raw_directory("visdial/official", tmp_path)
    image = jpeg(raw / "VisualDialog_test2018/VisualDialog_test2018_000000568676.jpg")
    history = "a busy street Question: is the photo in color Answer: yes"
    assert prepared("visdial", raw, "test") == (
        [
            record(
                image,
                "568676",
                2,
                history,
                "how many people",
                None,
                caption="a busy street",
                choices=choices(3),
            )
        ],
        [],
        {},
    )


def test_relevances_are_of_the_round_that_they_tell(tmp_path: Path):
    raw = raw_directory("visdial/official", tmp_path)
    relevance = [0.0, 1, 0.5, *[0.0] * 97]
    dense = [{"image_id": 185565, "round_id": 2, "gt_relevance": relevance}]
    (raw / "visdial_1.0_val_dense_annotations.json").write_text(json.dumps(dense))
    records, *_ = prepared("visdial", raw, "val")
    assert {one.id: one.details["relevance"] for one in records if "relevance" in one.details} == {
        "185565-2": relevance
    }
