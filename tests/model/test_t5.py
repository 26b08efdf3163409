import pytest
import torch
from transformers import T5Config

from ibtrain.model.language import build_language_model
from ibtrain.model.t5 import (
    Encoded,
    PackedRows,
    decoder_inputs,
    packed_stack,
    start_token,
    ties_embeddings,
)
from tests.tiny import tiny_architecture


def config_of(**changes) -> T5Config:
    section = {**tiny_architecture(language="t5")["language"], **changes}
    del section["model_type"]
    return T5Config(**section)


def rows_of(*lengths: int) -> PackedRows:
    cumulative = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return PackedRows(cumulative, max(lengths))


def test_an_answer_is_shifted_and_begins_with_the_start_token():
    ids = torch.tensor([11, 12, 1, 13, 1, 1])
    shifted = decoder_inputs(config_of(decoder_start_token_id=7), ids, rows_of(3, 2, 1))
    assert shifted.tolist() == [7, 11, 12, 7, 13, 7]
    assert ids.tolist() == [11, 12, 1, 13, 1, 1]


def test_without_a_start_token_it_is_the_padding_token():
    config = config_of(pad_token_id=5)
    config.decoder_start_token_id = None
    assert start_token(config) == 5


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_are_tied_as_the_configuration_says(tied):
    config = config_of(tie_word_embeddings=tied)
    for told in (config, T5Config(**config.to_dict())):
        model = build_language_model(told)
        assert ties_embeddings(told) is tied
        assert (model.lm_head.weight is model.shared.weight) is tied
        assert model.encoder.embed_tokens is model.decoder.embed_tokens is model.shared
        names = set(dict(model.named_parameters()))
        assert ("lm_head.weight" in names) is not tied
        assert "shared.weight" in names and "encoder.embed_tokens.weight" not in names


@pytest.mark.parametrize("tied", [True, False])
def test_packed_stacks_are_those_of_transformers(tied):
    """Longer than the distance from which the relative bias stays the same, and shorter."""
    torch.manual_seed(0)
    model = build_language_model(config_of(tie_word_embeddings=tied)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    prompts, answers = (17, 1, 6), (2, 14, 3)
    prompt_PD, answer_AD = torch.randn(sum(prompts), 32), torch.randn(sum(answers), 32)
    encoded_PD = packed_stack(model.encoder, prompt_PD, rows_of(*prompts), None, False)
    encoded = Encoded(encoded_PD, rows_of(*prompts))
    decoded_AD = packed_stack(model.decoder, answer_AD, rows_of(*answers), encoded, False)
    for index in range(3):
        prompt = prompt_PD.split(prompts)[index][None]
        alone = model.encoder(inputs_embeds=prompt).last_hidden_state
        got = encoded_PD.split(prompts)[index]
        torch.testing.assert_close(got, alone[0], rtol=1e-4, atol=1e-5)
        answer = answer_AD.split(answers)[index][None]
        wanted = model.decoder(inputs_embeds=answer, encoder_hidden_states=alone)
        got = decoded_AD.split(answers)[index]
        torch.testing.assert_close(got, wanted.last_hidden_state[0], rtol=1e-4, atol=1e-5)


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    model = build_language_model(config_of(dropout_rate=0.3))
    hidden, rows = torch.randn(5, 32), rows_of(3, 2)
    plain = packed_stack(model.encoder.eval(), hidden, rows, None, False)
    assert torch.equal(packed_stack(model.encoder, hidden, rows, None, False), plain)
    assert not torch.equal(packed_stack(model.encoder.train(), hidden, rows, None, False), plain)
