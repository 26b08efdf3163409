"""Our modules in the place of transformers', where no kernel runs; interpreted_model.py in
tests/kernels/ has them where kernels do."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig, T5Config
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5DenseActDense, T5LayerNorm

from ibtrain.config import LoraSection
from ibtrain.model.fused import (
    LlamaFeedForward,
    LlamaLayer,
    PackedLlamaAttention,
    RMSNorm,
    T5FeedForward,
    use_kernels,
)
from ibtrain.model.language import build_language_model, packed_hidden
from ibtrain.model.lora import add_adapters

SMALL = {"vocab_size": 50, "tie_word_embeddings": False}
LLAMA = LlamaConfig(
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    **SMALL,
)
GATED = SMALL | {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}
T5 = T5Config(**GATED)


def counts(model):
    kinds = (RMSNorm, PackedLlamaAttention, LlamaLayer, LlamaFeedForward, T5FeedForward)
    return [sum(type(module) is kind for module in model.modules()) for kind in kinds]


def test_every_module_is_replaced_once_and_parameters_stay():
    llama, t5 = AutoModelForCausalLM.from_config(LLAMA), AutoModelForSeq2SeqLM.from_config(T5)
    for model, wanted in ((llama, [5, 2, 2, 2, 0]), (t5, [12, 0, 0, 0, 4])):
        before = dict(model.named_parameters())
        use_kernels(model)
        after = dict(model.named_parameters())
        assert list(before) == list(after)
        assert all(before[name] is after[name] for name in before)
        assert counts(model) == wanted
        assert not any(isinstance(each, LlamaRMSNorm | T5LayerNorm) for each in model.modules())


def test_off_leaves_transformers_modules():
    for config in (LLAMA, T5):
        assert counts(build_language_model(config, kernels=False)) == [0] * 5
        assert sum(counts(build_language_model(config))) > 0


def test_an_activation_without_a_kernel_stays():
    relu = T5Config(**(GATED | {"feed_forward_proj": "relu"}))
    model = build_language_model(relu)
    assert any(isinstance(module, T5DenseActDense) for module in model.modules())
    assert counts(model)[4] == 0
    swapped = LlamaConfig(**(LLAMA.to_dict() | {"hidden_act": "relu"}))
    assert counts(build_language_model(swapped)) == [5, 2, 2, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("recompute", [False, True])
def test_a_llama_on_a_cpu_is_bitwise_what_it_was(dtype, recompute):
    torch.manual_seed(0)
    plain = build_language_model(LLAMA, kernels=False)
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = build_language_model(LLAMA)
    ours.load_state_dict(plain.state_dict())
    results = []
    for model in (plain, ours):
        model.to(dtype).train(recompute)
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(1)
        rows = torch.randn(9, 32).to(dtype).requires_grad_()
        places = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 4])
        hidden = packed_hidden(model, rows, places, torch.tensor([0, 4, 9]).int(), 5)
        results.append([hidden, *torch.autograd.grad(hidden.square().sum(), rows)])
    for got, wanted in zip(*results, strict=True):
        assert torch.equal(got, wanted)


def test_adapters_go_beside_the_replaced_modules_layers():
    model = build_language_model(LLAMA, LoraSection(rank=2, targets=("q_proj", "down_proj")))
    names = [name for name, _ in model.named_parameters() if "lora_A" in name]
    assert len(names) == 4
    plain = AutoModelForCausalLM.from_config(LLAMA)
    add_adapters(plain, LoraSection(rank=2, targets=("q_proj", "down_proj")))
    assert [name for name, _ in plain.named_parameters() if "lora_A" in name] == names


def test_generation_is_that_of_the_plain_modules():
    torch.manual_seed(0)
    for config in (LLAMA, T5):
        plain = build_language_model(config, kernels=False).eval()
        for parameter in plain.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        ours = build_language_model(config).eval()
        ours.load_state_dict(plain.state_dict())
        prompt = torch.tensor([[3, 4, 5, 6], [0, 0, 7, 8]])
        options = {"attention_mask": (prompt > 0).long(), "max_new_tokens": 8, "pad_token_id": 0}
        for beams in (1, 3):
            assert torch.equal(
                *(
                    model.generate(prompt, num_beams=beams, do_sample=False, **options)
                    for model in (plain, ours)
                )
            )
