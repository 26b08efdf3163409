from pathlib import Path

import pytest
import torch
from transformers import Blip2Config, Blip2ForConditionalGeneration, InstructBlipProcessor

from ibtrain.config import ModelSection
from ibtrain.pretrained.base import (
    base_config,
    base_directory,
    base_sources,
    config_or_published,
    record_base,
)
from ibtrain.pretrained.fit import choose_sources, parameter_shapes
from ibtrain.pretrained.tensors import RandomSource
from ibtrain.tokenization import InstructionTokenizer
from tests.tiny import (
    tiny_architecture,
    tiny_config,
    tiny_model,
    transformers_twin,
    vocabularies,
)


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
    with pytest.raises(ValueError, match="there is no such directory"):
        base_config(ModelSection(base=tmp_path / "absent"))


def test_a_blip2_directory(tmp_path, tiny_processor):
    """Its Q-Former reads no text and has no tokenizer."""
    sections = tiny_architecture(**vocabularies(tiny_processor))
    config = Blip2Config(
        vision_config=sections["vision"],
        qformer_config=sections["qformer"],
        text_config=sections["language"] | {"model_type": "llama"},
        num_query_tokens=3,
        image_token_index=5,
    )
    theirs = Blip2ForConditionalGeneration(config)
    theirs.save_pretrained(tmp_path)
    processor = InstructBlipProcessor.from_pretrained(tiny_processor)
    processor.tokenizer.save_pretrained(tmp_path)
    processor.image_processor.save_pretrained(tmp_path)
    section = ModelSection(base=tmp_path, instruction_aware=False)
    config = base_config(section)
    chosen = choose_sources(config, False, base_sources(section, config, 0))
    state = theirs.state_dict()
    for name, source in chosen.items():
        stored = name.replace("qformer.embeddings.layernorm", "qformer.layernorm")
        assert torch.equal(source.get(name), state[stored]), name
    tokenizer = InstructionTokenizer.from_directory(base_directory(section))
    assert len(tokenizer.instruction("a red circle").language) > 1
    record_base(section, config, tokenizer, 0)
    aware = ModelSection(base=tmp_path)
    with pytest.raises(ValueError, match=r"stay random.*Q-Former text path; .*parts\.stage1"):
        choose_sources(config, True, base_sources(aware, config, 0))


def test_a_hub_name_is_looked_up_in_the_local_cache_alone(tmp_path, monkeypatch):
    section = ModelSection(base=Path("nobody/no-such-model"))
    with pytest.raises(
        ValueError, match=r"nothing is fetched unless model\.allow_download is true"
    ):
        base_config(section)
    asked = {}

    def snapshot(name, **how):
        asked.update(how, name=name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    tiny_config().save_pretrained(tmp_path)
    assert base_config(section).text_config.hidden_size == 32
    assert (asked["name"], asked["local_files_only"]) == ("nobody/no-such-model", True)
    base_config(section.model_copy(update={"allow_download": True}))
    assert asked["local_files_only"] is False


def test_a_raw_delta_is_named(tmp_path):
    model = tiny_model(tiny_config())
    model.language_model.model.norm.weight.data.mul_(0.001)
    transformers_twin(model).save_pretrained(tmp_path)
    section = ModelSection(base=tmp_path)
    with pytest.raises(ValueError, match="is a raw delta, not a model"):
        base_sources(section, base_config(section), 0)


def test_a_release_that_is_asked_for_is_checked(tmp_path):
    config = tiny_config()
    config.text_config.max_position_embeddings = 4096
    transformers_twin(tiny_model(config)).save_pretrained(tmp_path)
    section = ModelSection(base=tmp_path, language_release="vicuna-v1.1")
    with pytest.raises(ValueError, match=r"Llama 2 as Vicuna v1\.5"):
        base_sources(section, base_config(section), 0)


def test_the_shapes_of_a_base_that_is_there(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    config, origin = config_or_published(ModelSection(base=tmp_path))
    assert config.text_config.hidden_size == 32
    assert origin == "the base's own configuration"


def test_the_shapes_of_a_base_that_is_not_there_are_the_published_ones(tmp_path):
    base = tmp_path / "instructblip-vicuna-13b"
    config, origin = config_or_published(ModelSection(base=base))
    assert config.text_config.hidden_size == 5120
    assert origin == f"vicuna-13b as published, for {base} is not on this disk"


def test_a_base_that_is_there_and_broken_is_not_passed_over(tmp_path):
    base = tmp_path / "instructblip-vicuna-13b"
    base.mkdir()
    (base / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json"):
        config_or_published(ModelSection(base=base))


def test_a_base_that_is_not_there_and_has_no_known_name(tmp_path):
    with pytest.raises(ValueError, match=r"mine is not there, and the base's name is none of a"):
        config_or_published(ModelSection(base=tmp_path / "mine"))


def test_a_language_model_alone_is_planned_by_its_name(tmp_path):
    """Without BERT, whose tokenizer tells the Q-Former's vocabulary, nothing can be read yet."""
    language = tmp_path / "vicuna-7b-v1.1"
    language.mkdir()
    section = ModelSection.model_validate(
        {"parts": {"language": language, "bert": tmp_path / "bert"}}
    )
    _, origin = config_or_published(section)
    assert origin == f"vicuna-7b as published, for {tmp_path / 'bert'} is not on this disk"
