import pytest
import torch

from ibtrain.pretrained.fit import parameter_shapes
from ibtrain.pretrained.lavis import LavisSource, from_lavis_name, to_lavis, to_lavis_names
from tests.pretrained.released import lavis_state_dict, without_key_bias
from tests.tiny import tiny_config, tiny_model


@pytest.fixture(params=["llama", "t5"])
def model(request):
    return without_key_bias(tiny_model(tiny_config(language=request.param)))


def is_t5(model) -> bool:
    return model.config.text_config.model_type == "t5"


def test_lavis_to_ours_to_lavis_is_bitwise(model, tmp_path):
    state = {
        name: tensor.to(torch.float16) if name.startswith("visual") else tensor
        for name, tensor in lavis_state_dict(model).items()
    }
    torch.save({"model": state}, tmp_path / "whole.pth")
    source = LavisSource(tmp_path / "whole.pth", encoder_decoder=is_t5(model))
    assert source.shapes() == parameter_shapes(model.config)
    read = ((name, source.get(name)) for name in source.shapes())
    back = dict(to_lavis(read, encoder_decoder=is_t5(model)))
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype, name
        assert torch.equal(back[name], tensor), name


def test_ours_to_lavis_is_what_the_conversion_script_reads(model):
    ours = ((name, parameter.detach()) for name, parameter in model.named_parameters())
    written = dict(to_lavis(ours, encoder_decoder=is_t5(model)))
    expected = lavis_state_dict(model)
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(written[name], tensor), name


def test_every_name_is_mapped_back(model):
    for name in parameter_shapes(model.config):
        for theirs in to_lavis_names(name, encoder_decoder=is_t5(model)):
            assert from_lavis_name(theirs) == name


@pytest.mark.parametrize("name", ["head.weight", "Qformer.cls.bias", "opt_proj.weight", "temp", ""])
def test_names_that_no_instructblip_has(name):
    assert from_lavis_name(name) is None


def test_a_bare_state_dict_and_the_old_file_format(model, tmp_path):
    state = {"query_tokens": torch.arange(6.0).reshape(1, 2, 3)}
    for number, modern in enumerate((True, False)):
        file = tmp_path / f"{number}.pth"
        torch.save(state, file, _use_new_zipfile_serialization=modern)
        source = LavisSource(file, encoder_decoder=False)
        assert torch.equal(source.get("query_tokens"), state["query_tokens"])


def test_a_projection_into_another_language_model_is_passed_over(tmp_path):
    torch.save({"t5_proj.bias": torch.ones(2), "llm_proj.bias": torch.ones(3)}, tmp_path / "a.pth")
    for encoder_decoder, width in ((True, 2), (False, 3)):
        source = LavisSource(tmp_path / "a.pth", encoder_decoder=encoder_decoder)
        assert source.shapes() == {"language_projection.bias": (width,)}


def test_half_an_attention_bias_is_refused(tmp_path):
    torch.save({"visual_encoder.blocks.0.attn.q_bias": torch.ones(2)}, tmp_path / "half.pth")
    with pytest.raises(ValueError, match="not the bias that belongs to it"):
        LavisSource(tmp_path / "half.pth", encoder_decoder=False)


def test_blocks_beyond_the_last_are_passed_over(tmp_path):
    names = [f"blocks.{number}.norm1.bias" for number in range(4)]
    torch.save({name: torch.ones(2) for name in names}, tmp_path / "eva.pth")
    source = LavisSource(
        tmp_path / "eva.pth", encoder_decoder=False, prefix="visual_encoder.", last_block=2
    )
    assert len(source.shapes()) == 3
    assert source.stored_name("vision_model.encoder.layers.2.layer_norm1.bias") == names[2]
