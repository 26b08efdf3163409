from pathlib import Path

import pytest
import torch

from ibtrain.config import ModelSection
from ibtrain.model.base import base_config, base_directory, base_sources
from ibtrain.model.weights import RandomSource, choose_sources, parameter_shapes
from tests.tiny import tiny_architecture, tiny_config, tiny_model, transformers_twin


def random_section(**changes) -> ModelSection:
    sections = {"processor": "tokenizers", "num_query_tokens": 3, **tiny_architecture(), **changes}
    return ModelSection.model_validate({"random_base": sections})


def test_a_base_directory(tmp_path):
    model = tiny_model(tiny_config())
    transformers_twin(model).save_pretrained(tmp_path)
    section = ModelSection(base=tmp_path)
    assert base_directory(section) == tmp_path
    config = base_config(section)
    assert config.text_config.hidden_size == 32
    (source,) = base_sources(section, config, seed=0)
    assert torch.equal(source.get("query_tokens"), model.query_tokens)


def test_a_random_base():
    section = random_section(initializer_range=0.5)
    assert base_directory(section) == Path("tokenizers")
    config = base_config(section)
    assert parameter_shapes(config) == parameter_shapes(tiny_config())
    assert config.use_decoder_only_language_model
    (source,) = base_sources(section, config, seed=7)
    wanted = RandomSource(parameter_shapes(config), 7, 0.5).get("query_tokens")
    assert torch.equal(source.get("query_tokens"), wanted)
    assert set(choose_sources(config, True, [source])) == set(parameter_shapes(config))


def test_a_random_base_without_instructions():
    section = random_section().model_copy(update={"instruction_aware": False})
    config = base_config(section)
    (source,) = base_sources(section, config, seed=7)
    assert source.shapes() == parameter_shapes(config, False)
    choose_sources(config, False, [source])


@pytest.mark.parametrize("part", ["vision", "qformer", "language"])
def test_an_unknown_key_is_named(part):
    values = tiny_architecture()[part] | {"hiden_size": 8}
    with pytest.raises(ValueError, match=rf"random_base\.{part} has the unknown key 'hiden_size'"):
        base_config(random_section(**{part: values}))


def test_an_unknown_language_model_is_named():
    language = tiny_architecture()["language"] | {"model_type": "lama"}
    with pytest.raises(ValueError, match=r"language\.model_type 'lama' is not a type"):
        base_config(random_section(language=language))


def test_a_base_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"it has no config\.json"):
        base_config(ModelSection(base=tmp_path / "absent"))
