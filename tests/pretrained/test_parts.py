"""A base put together from released files gives the model that they were taken from."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from ibtrain.config import ModelSection
from ibtrain.pretrained.base import base_config, base_directory, base_sources, record_base
from ibtrain.pretrained.fit import choose_sources
from ibtrain.tokenization import InstructionTokenizer
from tests.pretrained.released import (
    lavis_state_dict,
    trimmed,
    without_key_bias,
    write_bert,
    write_eva,
    write_language,
)
from tests.tiny import tiny_config, tiny_model, vocabularies, write_tiny_base


class Released:
    """The files of one tiny model, and the model."""

    def __init__(self, directory: Path, processor: Path, family: str) -> None:
        self.directory = directory
        self.model = without_key_bias(
            tiny_model(tiny_config(language=family, **vocabularies(processor)))
        )
        self.state = lavis_state_dict(self.model)
        rows = self.model.config.text_config.vocab_size
        self.language = write_language(self.model, processor, directory / "language", rows)
        self.bert = write_bert(self.model, processor, directory / "bert", weights=False)
        self.vision = write_eva(self.state, directory / "eva_vit_g.pth")
        self.instructblip = self.save("instructblip.pth", trimmed(self.state))

    def save(self, name: str, state: dict[str, torch.Tensor]) -> Path:
        torch.save({"model": state}, self.directory / name)
        return self.directory / name

    def section(self, **parts) -> ModelSection:
        config = self.model.config
        own = {
            "language": self.language,
            "bert": self.bert,
            "num_query_tokens": config.num_query_tokens,
            "vision_config": _differences(config.vision_config),
            "qformer_config": _differences(config.qformer_config),
        }
        return ModelSection.model_validate({"parts": own | parts, "precision": "fp32"})


def _differences(config) -> dict:
    skipped = ("vocab_size", "model_type", "encoder_hidden_size", "transformers_version")
    default = type(config)().to_dict()
    return {
        key: value
        for key, value in config.to_dict().items()
        if key in default and default[key] != value and key not in skipped
    }


@pytest.fixture(scope="module", params=["llama", "t5"])
def released(request, tmp_path_factory, tiny_processor) -> Released:
    return Released(tmp_path_factory.mktemp(request.param), tiny_processor, request.param)


def chosen_of(section: ModelSection):
    config = base_config(section)
    sources = base_sources(section, config, seed=0)
    return config, choose_sources(config, section.instruction_aware, sources)


def test_the_trimmed_file_with_tower_and_language_model_is_the_model(released):
    section = released.section(vision=released.vision, instructblip=released.instructblip)
    _, chosen = chosen_of(section)
    own = dict(released.model.named_parameters())
    assert set(chosen) == set(own)
    for name, source in chosen.items():
        assert torch.equal(source.get(name), own[name]), name


def test_the_tokenizers_are_lavis_s(released):
    section = released.section(vision=released.vision, instructblip=released.instructblip)
    tokenizer = InstructionTokenizer.from_directory(base_directory(section))
    assert tokenizer.qformer.convert_tokens_to_ids("[DEC]") == len(tokenizer.qformer) - 1
    assert tokenizer.qformer.truncation_side == "left"
    if released.model.config.text_config.model_type == "llama":
        assert tokenizer.language.bos_token == tokenizer.language.eos_token == "</s>"
        assert tokenizer.instruction("red").language[0] == tokenizer.end_id
        assert tokenizer.language.pad_token == "[PAD]"


def test_the_second_stage_with_the_first_s_text_path(released):
    text = ("embeddings.word", "embeddings.position", ".intermediate.", ".output.")

    def is_text(name: str) -> bool:
        return (
            name.startswith("Qformer.")
            and any(part in name for part in text)
            and "attention.output" not in name
        )

    state = trimmed(released.state)
    second = {name: tensor for name, tensor in state.items() if not is_text(name)}
    first = {name: tensor + (0 if is_text(name) else 1) for name, tensor in state.items()}
    first = {name: tensor for name, tensor in first.items() if "_proj." not in name}
    first |= {
        "Qformer.cls.bias": torch.ones(2),
        "itm_head.bias": torch.ones(2),
        "temp": torch.ones(()),
    }
    section = released.section(
        vision=released.vision,
        stage1=released.save("stage1.pth", first),
        stage2=released.save("stage2.pth", second),
    )
    config, chosen = chosen_of(section)
    for name, parameter in released.model.named_parameters():
        assert torch.equal(chosen[name].get(name), parameter), name
    forgotten = released.section(vision=released.vision, stage2=released.directory / "stage2.pth")
    with pytest.raises(ValueError, match=r"stay random.*of the Q-Former text path;.*stage1"):
        chosen_of(forgotten)
    without = forgotten.model_copy(update={"instruction_aware": False})
    assert len(chosen_of(without)[1]) < len(chosen)
    record_base(section, config, InstructionTokenizer.from_directory(base_directory(section)), 0)


def test_bert_alone_gives_the_text_path_and_leaves_the_rest_to_be_named(
    released, tmp_path, tiny_processor, caplog
):
    bert = write_bert(released.model, tiny_processor, tmp_path / "bert", weights=True)
    with pytest.raises(ValueError, match=r"queries, .* of the Q-Former, .* of the projection"):
        chosen_of(released.section(vision=released.vision, bert=bert))
    section = released.section(vision=released.vision, bert=bert, random=["qformer", "projection"])
    config, chosen = chosen_of(section)
    layer = "qformer.encoder.layer.1."
    text = chosen[f"{layer}intermediate.dense.weight"].get(f"{layer}intermediate.dense.weight")
    query = chosen[f"{layer}intermediate_query.dense.weight"]
    assert torch.equal(text, query.get(f"{layer}intermediate_query.dense.weight"))
    assert "random" in chosen["query_tokens"].description
    record_base(section, config, InstructionTokenizer.from_directory(base_directory(section)), 0)
    assert "plain BERT" in caplog.text


def test_a_part_that_would_stay_random_is_refused(released):
    with pytest.raises(ValueError, match=r"of the vision tower; name EVA-ViT-g's file"):
        chosen_of(released.section(instructblip=released.instructblip))


def test_unknown_keys_are_named(released):
    state = trimmed(released.state) | {"Qformer.bert.pooler.weight": torch.ones(2)}
    wrong = released.save("wrong.pth", state)
    with pytest.raises(ValueError, match=r"wrong\.pth holds 1 tensors .*'Qformer.bert.pooler.w"):
        chosen_of(released.section(vision=released.vision, instructblip=wrong))
    wrong = released.save("wrong.pth", trimmed(released.state) | {"audio.bias": torch.ones(2)})
    with pytest.raises(ValueError, match=r"wrong\.pth holds what LAVIS.*'audio.bias'"):
        chosen_of(released.section(vision=released.vision, instructblip=wrong))


@pytest.mark.parametrize("part", ["vision", "stage1", "stage2", "instructblip", "language", "bert"])
def test_a_file_that_is_not_there_is_named(released, tmp_path, part):
    absent = {part: tmp_path / "absent.pth"}
    with pytest.raises(ValueError, match=rf"{tmp_path / 'absent.pth'} .*give the|is not a model"):
        chosen_of(released.section(**{"instructblip": released.instructblip} | absent))


def test_a_projection_of_another_width(released):
    state = trimmed(released.state)
    name = next(name for name in state if name.endswith("_proj.bias"))
    wrong = released.save("wide.pth", state | {name: torch.ones(33)})
    with pytest.raises(ValueError, match="trained with a language model of width 33"):
        chosen_of(released.section(vision=released.vision, instructblip=wrong))


def test_a_padding_token_gets_a_row(tmp_path, tiny_processor):
    """Vicuna as released has no padding token; LAVIS adds one, and its embedding."""
    model = tiny_model(tiny_config(**vocabularies(tiny_processor)))
    language = write_language(model, tiny_processor, tmp_path / "language", 384)
    tokenizer = AutoTokenizer.from_pretrained(language)
    for file in language.glob("*token*.json"):
        text = file.read_text().replace("[PAD]", "<pad-of-none>")
        file.write_text(text)
    assert tokenizer.pad_token == "[PAD]"
    section = ModelSection.model_validate(
        {
            "parts": {
                "language": language,
                "bert": write_bert(model, tiny_processor, tmp_path / "bert", weights=False),
            }
        }
    )
    config = base_config(section)
    assert config.text_config.vocab_size > 384
    name = "language_model.lm_head.weight"
    source = next(s for s in base_sources(section, config, 0) if name in s.shapes())
    rows = source.get(name)
    assert rows.shape[0] == config.text_config.vocab_size
    torch.testing.assert_close(rows[384], rows[:384].mean(0))
    assert torch.equal(rows[:384], model.language_model.lm_head.weight[:384])


def test_a_file_of_another_stage_is_refused(released):
    state = trimmed(released.state)
    first = {name: tensor for name, tensor in state.items() if "_proj." not in name}
    stage1 = released.save("first.pth", first | {"itm_head.bias": torch.ones(2)})
    stage2 = released.save("second.pth", state)
    with pytest.raises(ValueError, match=r"stage1 .*second\.pth has a projection .*parts\.stage2"):
        chosen_of(released.section(vision=released.vision, stage1=stage2, stage2=stage1))
    with pytest.raises(ValueError, match=r"stage2 .*first\.pth has the heads .*parts\.stage1"):
        chosen_of(released.section(vision=released.vision, stage2=stage1, random=["projection"]))


def test_a_file_for_another_language_model_is_said_to_be_one(released):
    other = "t5_proj" if released.model.config.text_config.model_type == "llama" else "llm_proj"
    state = {
        name.replace("llm_proj", other).replace("t5_proj", other): tensor
        for name, tensor in trimmed(released.state).items()
    }
    file = released.save("other.pth", state)
    with pytest.raises(ValueError, match=rf"other\.pth \(without its {other}, which leads into"):
        chosen_of(released.section(vision=released.vision, instructblip=file))


def test_directories_of_other_models(released, tmp_path, tiny_processor):
    with pytest.raises(ValueError, match=r"has no \[CLS\], so it is not BERT's"):
        chosen_of(released.section(bert=released.language))
    whole = write_tiny_base(tmp_path / "whole", tiny_processor)
    with pytest.raises(ValueError, match="is a whole instructblip, not a language model alone"):
        chosen_of(released.section(language=whole))


def test_code_beside_a_language_model_is_never_offered_to_run(released, tmp_path, capsys):
    shutil.copytree(released.language, tmp_path / "language")
    file = tmp_path / "language/config.json"
    values = {"model_type": "nonesuch", "auto_map": {"AutoConfig": "code.Config"}}
    file.write_text(json.dumps(values))
    (tmp_path / "language/code.py").write_text("raise AssertionError('this ran')\n")
    with pytest.raises(ValueError, match=r"config\.json is no configuration that transformers can"):
        chosen_of(released.section(language=tmp_path / "language"))
    assert "[y/N]" not in capsys.readouterr().out
