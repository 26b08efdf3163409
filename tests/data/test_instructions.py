from pathlib import Path

import pytest

from ibtrain.data.instructions import (
    TEMPLATE_DIRECTORY,
    format_options,
    load_templates,
    render,
    template_version,
    templates,
)
from ibtrain.data.records import Answer, Example

TEN = "".join(f'  - "{number} {{question}}"\n' for number in range(10))


def example(dataset: str, task: str, slots: dict[str, str], *instructions: str) -> Example:
    return Example(dataset, task, "1", None, (Answer("x"),), slots, instructions)


def test_every_shipped_file_is_valid_and_begins_with_the_evaluation_prompt():
    first = {
        path.stem: load_templates(path).templates[0] for path in TEMPLATE_DIRECTORY.glob("*.yaml")
    }
    assert first == {
        "captioning": "A short image description:",
        "visual_question_answering": "Question: {question} Short answer:",
        "multiple_choice": "Question: {question} Options: {options}. Short answer:",
    }
    assert len(template_version()) == 16


def test_every_variant_is_rendered():
    texts = render(
        example("vqav2", "visual_question_answering", {"question": "What {is} it\N{HOT BEVERAGE}?"})
    )
    assert len(texts) == len(templates("visual_question_answering").templates) >= 10
    assert texts[0] == "Question: What {is} it\N{HOT BEVERAGE}? Short answer:"
    assert all("What {is} it\N{HOT BEVERAGE}?" in text for text in texts)


def test_held_out_data_gets_the_evaluation_prompt_alone():
    slots = {"question": "Is it red?"}
    assert render(example("gqa", "visual_question_answering", slots)) == (
        "Question: Is it red? Short answer:",
    )


def test_instructions_of_the_dataset_are_left_alone():
    texts = render(example("llava_conversation", "conversation", {}, "What  is\nTHIS?"))
    assert texts == ("What  is\nTHIS?",)


def test_a_missing_slot_is_named():
    with pytest.raises(ValueError, match="vqav2 1: no value for the slot 'question'"):
        render(example("vqav2", "visual_question_answering", {}))


def test_options_are_lettered():
    assert format_options(["red", "light blue"]) == "(a) red (b) light blue"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "slots: [question]\ntemplates:\n" + TEN + '  - "{quesion}"\n',
            r"13: unknown slot 'quesion'",
        ),
        (
            "slots: [question]\ntemplates:\n" + TEN + '  - "none"\n',
            r"13: slot 'question' must stand",
        ),
        ("slots: [question]\ntemplates:\n" + TEN + '  - "3  {Question}"\n', r"13: unknown slot"),
        ("slots: [question]\ntemplates:\n" + TEN + '  - "3  {question}"\n', r"13: .* line 6"),
        ("slots: [question]\ntemplates:\n" + TEN + '  - "{question!r}"\n', r"13: .*carry a format"),
        ("slots: [question]\ntemplates:\n" + TEN + '  - "{question"\n', r"13: .*brace"),
        ("slots: [question]\ntemplates:\n" + TEN + "  - 3\n", r"13: .*not a string"),
        ("slots: [question]\ntemplates:\n" + TEN + "  - ''\n", r"13: .*empty"),
        ("slots: [question]\ntemplates:\n  - '{question}'\n", r"at least 10"),
        ("slots: [question]\n", r"expected the keys"),
        ("- a\n", r"expected the keys"),
        ("slots: [\n", r"not readable as YAML"),
        ("slots: question\ntemplates: []\n", r"'slots' must be a list"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, text: str, message: str):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_templates(path)
    assert "bad.yaml" in str(error.value)
