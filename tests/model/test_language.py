import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig

from ibtrain.model.language import (
    answer_logits,
    answer_losses,
    build_language_model,
    packed_hidden,
)
from tests.tiny import tiny_architecture


def pair() -> tuple[torch.nn.Module, LlamaForCausalLM]:
    """Ours and transformers' own, with the same weights."""
    config = LlamaConfig(**tiny_architecture(language_key_heads=2)["language"])
    torch.manual_seed(0)
    own = LlamaForCausalLM(config).eval()
    ours = build_language_model(LlamaConfig(**config.to_dict())).eval()
    ours.load_state_dict(own.state_dict())
    return ours, own


def test_other_architectures_are_refused():
    with pytest.raises(ValueError, match=r"of type 'opt'; supported: 'llama' .* and 't5'"):
        build_language_model(OPTConfig())


def test_packed_rows_equal_each_row_alone():
    ours, own = pair()
    ids = torch.tensor([5, 6, 7, 8, 9, 10, 11])
    positions = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    cu_tokens = torch.tensor([0, 4, 7], dtype=torch.int32)
    hidden = packed_hidden(ours, ours.model.embed_tokens(ids), positions, cu_tokens, 4)
    for begin, end in ((0, 4), (4, 7)):
        alone = own.model(input_ids=ids[None, begin:end]).last_hidden_state[0]
        torch.testing.assert_close(hidden[begin:end], alone, rtol=1e-5, atol=1e-5)


def test_losses_of_answer_tokens():
    ours, _ = pair()
    hidden = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    wanted = torch.tensor([7, 2])
    logits = answer_logits(ours, hidden)
    assert logits.shape == (2, 96) and logits.dtype == torch.float32
    expected = -torch.log_softmax(ours.lm_head(hidden), dim=-1)[torch.arange(2), wanted]
    torch.testing.assert_close(answer_losses(ours, hidden, wanted), expected)


@pytest.mark.parametrize("masked", [True, False])
def test_unpacked_it_computes_as_transformers_does(masked):
    """Padded rows with a mask, or rows without one: generation calls the model this way."""
    ours, own = pair()
    ids = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]])
    mask = (ids != 0).long() if masked else None
    got = ours(input_ids=ids, attention_mask=mask).logits
    wanted = own(input_ids=ids, attention_mask=mask).logits
    seen = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    torch.testing.assert_close(got[seen], wanted[seen], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"do_sample": False}, {"num_beams": 3, "do_sample": False}])
def test_generation_is_that_of_transformers(options):
    ours, own = pair()
    ids = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]])
    arguments = {"input_ids": ids, "attention_mask": (ids != 0).long(), "max_new_tokens": 12}
    got = ours.generate(**arguments, **options)
    assert torch.equal(got, own.generate(**arguments, **options))
