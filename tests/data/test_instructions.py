from pathlib import Path

import pytest

from ibtrain.data import catalog
from ibtrain.data.instructions import (
    TEMPLATE_DIRECTORY,
    format_options,
    load_templates,
    plain_input,
    render,
    template_version,
    templates,
)
from ibtrain.data.records import Answer, Example

TEN = "".join(f'  - "{number} {{question}}"\n' for number in range(10))


def example(dataset: str, form: str, slots: dict[str, str], *instructions: str) -> Example:
    task = catalog.get(dataset).task
    return Example(dataset, task, "1", None, (Answer("x"),), form, slots, instructions)


def rendered(dataset: str, form: str, slots: dict[str, str], *instructions: str) -> tuple[str, ...]:
    return render(example(dataset, form, slots, *instructions), catalog.get(dataset))


def test_every_shipped_file_is_valid_and_begins_with_the_evaluation_prompt():
    first = {
        path.stem: load_templates(path).templates[0] for path in TEMPLATE_DIRECTORY.glob("*.yaml")
    }
    assert first == {
        "captioning": "A short image description:",
        "captioning_with_reading": "OCR tokens: {ocr_tokens}. A short image description:",
        "question_answering_with_reading": "OCR tokens: {ocr_tokens}. Question: {question} "
        "Short answer:",
        "question_generation": "Write a question about the image whose answer is: {answer}. "
        "Question:",
        "visual_question_answering": "Question: {question} Short answer:",
        "multiple_choice": "Question: {question} Options: {options}. Short answer:",
    }
    assert len(template_version()) == 16


def test_every_variant_is_rendered():
    question = "What {is} it\N{HOT BEVERAGE}?"
    texts = rendered("vqav2", "visual_question_answering", {"question": question})
    assert len(texts) == len(templates("visual_question_answering").templates) >= 10
    assert texts[0] == "Question: What {is} it\N{HOT BEVERAGE}? Short answer:"
    assert all("What {is} it\N{HOT BEVERAGE}?" in text for text in texts)


def test_held_out_data_gets_the_evaluation_prompt_alone():
    slots = {"question": "Is it red?"}
    assert rendered("gqa", "visual_question_answering", slots) == (
        "Question: Is it red? Short answer:",
    )


def test_instructions_of_the_dataset_are_left_alone():
    texts = rendered("llava_conversation", "", {}, "What  is\nTHIS?")
    assert texts == ("What  is\nTHIS?",)


def test_a_missing_slot_is_named():
    with pytest.raises(ValueError, match="vqav2 1: no value for the slot 'question'"):
        rendered("vqav2", "visual_question_answering", {})
    with pytest.raises(ValueError, match=r"vqav2.yaml: prompts: none for the form 'captioning'"):
        rendered("vqav2", "captioning", {})


SHORT = ("short", "brief", "few words", "one or two words", "a word or two")


@pytest.mark.parametrize(
    "form",
    ["visual_question_answering", "question_answering_with_reading", "multiple_choice"],
)
def test_each_instruction_of_a_short_answer_says_so(form: str):
    for text in templates(form).templates:
        assert any(word in text.casefold() for word in SHORT), text


def test_a_file_may_tell_its_form(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("form: visual_question_answering\nslots: [question]\ntemplates:\n" + TEN)
    assert load_templates(path).form == "visual_question_answering"
    path.write_text("slots: [question]\ntemplates:\n" + TEN)
    assert load_templates(path).form == "mine"


def test_the_plain_input_holds_no_instruction():
    def plain(dataset: str, form: str, slots: dict[str, str], *instructions: str) -> str:
        given = example(dataset, form, slots, *instructions)
        return plain_input(given, catalog.get(dataset))

    asked = {"question": "Is {it}?", "options": "(a) yes (b) no"}
    assert plain("coco_caption", "captioning", {}) == ""
    assert plain("aokvqa", "multiple_choice", asked) == "Is {it}? (a) yes (b) no"
    assert plain("llava_detail", "", {}, "What  is\nTHIS?") == "What  is\nTHIS?"


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
        ("? [a]\n: 1\n", r"expected the keys"),
        ("slots: [a]\nslots: [b]\n", r"2: the key 'slots' stands twice"),
        ("form: [a, b]\nslots: [question]\ntemplates:\n" + TEN, r"1: .*'form' is not a string"),
        ("form: a b\nslots: [question]\ntemplates:\n" + TEN, r"1: the form 'a b' is no plain"),
        ("slots: &a [x]\ntemplates: *a\n", r"alias"),
        ("# " + "x" * 100_000, r"larger than"),
        ("slots: question\ntemplates: []\n", r"'slots' must be a list"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, text: str, message: str):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_templates(path)
    assert "bad.yaml" in str(error.value)
