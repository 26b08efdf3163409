import pytest

from ibtrain.config import ModelSection, load_recipe
from ibtrain.pretrained.published import LANGUAGE_MODELS, published_config, published_name


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("vicuna7b", "vicuna-7b"),
        ("vicuna13b", "vicuna-13b"),
        ("vicuna13b-lora", "vicuna-13b"),
        ("flan-t5-xl", "flan-t5-xl"),
        ("flan-t5-xxl", "flan-t5-xxl"),
        ("toy", None),
    ],
)
def test_the_shipped_recipes(recipe, name):
    assert published_name(load_recipe(recipe).model) == name


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"base": "Salesforce/instructblip-flan-t5-xxl"}, "flan-t5-xxl"),
        ({"base": "somewhere/InstructBLIP-Vicuna-7B"}, "vicuna-7b"),
        ({"parts": {"bert": "bert", "stage2": "Salesforce/blip2-flan-t5-xl"}}, "flan-t5-xl"),
        ({"base": "vicuna-7b/llama"}, None),  # a directory's own name counts
    ],
)
def test_bases_by_their_names(values, name):
    assert published_name(ModelSection.model_validate(values)) == name


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_every_published_size_is_an_instructblip(name):
    """Its parameters are counted in test_instructblip.py."""
    config = published_config(name)
    assert config.vision_config.num_hidden_layers == 39
    assert config.qformer_config.vocab_size == 30523
    assert config.text_config.model_type == ("t5" if "t5" in name else "llama")
    assert getattr(config.text_config, "dense_act_fn", "gelu") == "gelu"
