"""LLaVA-Instruct: every turn, with all before it, its text as it is."""

from pathlib import Path

import pytest

from ibtrain.data.records import Answer, Record
from tests.data.readers.harness import jpeg, prepared, raw_directory

ROOTS = "RAW/images, RAW/../coco/images, RAW"


def record(kind: str, image: Path, identity: str, instruction: str, answer: str) -> Record:
    return Record(
        dataset=f"llava_{kind}",
        task="llava_instruct",
        id=identity,
        images=(jpeg(image),),
        instructions=(instruction,),
        answers=(Answer(answer),),
        form="",
        plain=instruction,
        details={"turn": int(identity.rpartition("-")[2].partition("#")[0])},
    )


def test_conversations(tmp_path: Path):
    raw = raw_directory("llava_conversation/official", tmp_path)
    cat = tmp_path / "coco/images/train2014/COCO_train2014_000000052846.jpg"
    bus = tmp_path / "coco/images/train2017/000000033471.jpg"
    first = "What ARE the colors of the bus?"
    colors = "The bus is white and RED."
    assert prepared("llava_conversation", raw, "train") == (
        [
            record("conversation", bus, "000000033471-0", first, colors),
            record(
                "conversation",
                bus,
                "000000033471-1",
                f"{first}\n{colors}\nWhich feature?  (Two spaces.)",
                'An advertisement: "Café #1" *now*!',
            ),
            record("conversation", bus, "000000033471-0#2", "The same id?", "Yes."),
            record("conversation", cat, "000000052846-0", "Where is the cat?", "On its back. 🐈"),
        ],
        [("000000319154", f"no image COCO image 319154; looked in {ROOTS}")],
        # A question at the end, an answer at the begin and the question after it.
        {"no turns": 1, "unanswered turn": 3},
    )


def test_a_long_answer_is_kept_whole(tmp_path: Path):
    raw = raw_directory("llava_detail/official", tmp_path)
    image = raw / "images/train2014/COCO_train2014_000000525439.jpg"
    place = "detail_23k.json"
    assert prepared("llava_detail", raw, "train") == (
        [
            record(
                "detail",
                image,
                "000000525439-0",
                "Analyze the image in a comprehensive and detailed manner.",
                "The image shows a long, long street. " * 40,
            )
        ],
        [
            ("000000293505", f"{place}[1]: conversations[0]: 'value' holds no question"),
            (
                "000000204186",
                f"{place}[2]: conversations[1]: 'value' must be a string that is not empty, "
                "found ''",
            ),
            ("000000578250", f"{place}[3]: 'conversations' must be a list, found 'none'"),
        ],
        {},
    )


def test_lines_and_braces_of_an_answer_are_kept(tmp_path: Path):
    raw = raw_directory("llava_reasoning/official", tmp_path)
    image = tmp_path / "coco/images/train2014/COCO_train2014_000000482275.jpg"
    assert prepared("llava_reasoning", raw, "train") == (
        [
            record(
                "reasoning",
                image,
                "000000482275-0",
                "Why might {they} wait?",
                "They wait for:\n\n1. a bus\n2. naïve friends",
            )
        ],
        [
            ("000000215282", "the image path '../000000482275.jpg' leaves the image folder"),
            (
                "000000215283",
                "complex_reasoning_77k.json[2]: conversations[1]: expected a turn from 'human' or "
                "'user', 'gpt' or 'assistant', or 'system', found 'moderator'",
            ),
        ],
        {},
    )


@pytest.mark.parametrize(
    ("turns", "reason"), [(402, "402 turns; at most 400"), (40, "with its history, longer than")]
)
def test_what_grows_without_end_is_refused(tmp_path: Path, turns: int, reason: str):
    raw = tmp_path / "raw"
    raw.mkdir()
    text = "x" * (10 if turns > 100 else 10_000)
    said = ",".join(
        f'{{"from": "{("human", "gpt")[number % 2]}", "value": "{text}"}}'
        for number in range(turns)
    )
    short = '{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}'
    other = f'{{"id": 2, "conversations": [{short}]}}'
    (raw / "conversation_58k.json").write_text(f'[{{"id": 1, "conversations": [{said}]}}, {other}]')
    records, ((identity, found),), dropped = prepared("llava_conversation", raw, "train")
    assert (len(records), identity, dropped) == (1, "1", {})
    assert reason in found
