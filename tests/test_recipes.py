"""The shipped sizes, held against what the paper says of them (arXiv 2305.06500, pages 4 to 6)."""

import pytest

from ibtrain.config import load_recipe, recipe_path

SIZES = ("vicuna7b", "vicuna13b", "vicuna13b-lora", "flan-t5-xl", "flan-t5-xxl")
GLOBAL_BATCH = {
    "vicuna7b": 128,
    "vicuna13b": 64,
    "vicuna13b-lora": 64,
    "flan-t5-xl": 192,
    "flan-t5-xxl": 64,
}
HELD_IN = {
    *("coco_caption", "web_capfilt", "textcaps", "vqav2", "okvqa", "aokvqa", "ocr_vqa"),
    *("vqav2_question_generation", "okvqa_question_generation", "aokvqa_question_generation"),
    *("llava_conversation", "llava_detail", "llava_reasoning"),
}


@pytest.mark.parametrize("name", SIZES)
def test_the_papers_hyper_parameters(name):
    recipe = load_recipe(name)
    training = recipe.training
    assert training.steps == 60_000
    assert training.global_batch == GLOBAL_BATCH[name]
    assert (training.learning_rate, training.min_learning_rate) == (1e-5, 0.0)
    assert (training.warmup_steps, training.warmup_start) == (1000, 1e-8)
    assert training.betas == (0.9, 0.999)
    assert training.weight_decay == 0.05
    assert training.gradient_clip == 0.0
    assert recipe.checkpoint.every == 3000
    assert recipe.data.image_size == 224
    assert recipe.data.balance == "sqrt"
    assert (recipe.data.max_instruction_tokens, recipe.data.max_answer_tokens) == (128, 256)
    assert {entry.dataset for entry in recipe.data.mixture} == HELD_IN
    assert recipe.model.instruction_aware
    assert recipe.model.precision == "bf16"


@pytest.mark.parametrize("name", SIZES)
def test_what_is_trained(name):
    model = load_recipe(name).model
    adapted = name.endswith("-lora")
    assert model.train_parts.model_dump() == {
        "vision": "frozen",
        "qformer": "full",
        "projection": "full",
        "language": "lora" if adapted else "frozen",
    }
    assert (model.lora is not None) is adapted


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("ranks", [8, 16, 32])
def test_the_global_batch_divides_among_whole_nodes(name, ranks):
    assert load_recipe(name).training.global_batch % ranks == 0


@pytest.mark.parametrize("name", SIZES)
def test_on_eight_gpus_a_step_is_one_micro_batch(name):
    training = load_recipe(name).training
    assert training.micro_batch * 8 == training.global_batch


@pytest.mark.parametrize("name", [*SIZES, "toy", "toy-base"])
def test_the_head_of_the_file_says_how_and_on_what(name):
    text = recipe_path(name).read_text()
    head = text[: text.index("\nname: ")]
    assert all(line.startswith("#") for line in head.splitlines())
    assert "deepspeed --no_local_rank" in head
    assert f"--module ibtrain train {name}" in head
    assert ("GPUs of" in head) is (name in SIZES)
    assert "Made for" in head or "Meant for" in head


@pytest.mark.parametrize("name", SIZES)
def test_another_root_moves_every_path(name):
    recipe = load_recipe(name, ["root=/elsewhere"])
    parts = recipe.model.parts
    paths = [recipe.output, parts.language, parts.bert, parts.vision, parts.stage1]
    paths += [entry.path for entry in recipe.data.mixture]
    assert all(str(path).startswith("/elsewhere/") for path in paths)


def test_adapters_are_asked_for_in_one_word():
    model = load_recipe("vicuna7b", ["model.train_parts.language=lora"]).model
    assert model.lora is not None and model.lora.rank == 16
