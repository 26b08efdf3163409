import math

import pytest
import torch
from peft import get_peft_model, set_peft_model_state_dict

from ibtrain.config import LoraSection, ModelSection, TrainParts
from ibtrain.model.instructblip import InstructBlip, set_trainable
from ibtrain.model.language import build_language_model
from ibtrain.model.lora import adapter_names, is_adapter, merged_weight, peft_config, stored_name
from ibtrain.pretrained.fit import parameter_shapes
from ibtrain.pretrained.tensors import AdapterSource, RandomSource
from tests.model.parity import MIXED, draw_samples, pack, pad, relative_error
from tests.tiny import tiny_config, tiny_model, transformers_twin

LORA = LoraSection(rank=3, alpha=7, dropout=0.0)
FAMILIES = ("llama", "t5")
TRAINED = {"vision": "frozen", "qformer": "frozen", "projection": "frozen", "language": "lora"}


def with_adapters(plain: InstructBlip, lora: LoraSection = LORA, seed: int = 1) -> InstructBlip:
    """The same weights, and random adapters that matter."""
    model = InstructBlip(plain.config, plain.instruction_aware, lora)
    weights = dict(plain.weights())
    drawn = RandomSource(parameter_shapes(plain.config, lora=lora), seed, 0.2)
    with torch.no_grad():
        for name, parameter in model.weights():
            parameter.copy_(drawn.get(name) if is_adapter(name) else weights[name])
    return model.eval()


def test_names():
    inside = "language_model.model.layers.0.self_attn.q_proj."
    assert stored_name(inside + "base_layer.weight") == inside + "weight"
    assert stored_name(inside + "lora_A.default.weight") == inside + "lora_A.weight"
    assert stored_name("query_tokens") == "query_tokens"
    assert adapter_names(inside + "weight") == (inside + "lora_A.weight", inside + "lora_B.weight")
    assert is_adapter(inside + "lora_B.weight") and not is_adapter(inside + "weight")


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_else_keeps_its_name(family):
    config = tiny_config(language=family)
    plain, shapes = parameter_shapes(config), parameter_shapes(config, lora=LORA)
    adapters = {name for name in shapes if is_adapter(name)}
    assert {name: shape for name, shape in shapes.items() if name not in adapters} == plain
    ends = ("q_proj", "v_proj") if family == "llama" else (".q", ".v")
    layers = {name.rpartition(".lora_")[0] for name in adapters}
    assert layers == {
        name.removesuffix(".weight")
        for name in plain
        if name.startswith("language_model.") and name.removesuffix(".weight").endswith(ends)
    }
    for layer in layers:
        a, b = adapter_names(f"{layer}.weight")
        wide, narrow = plain[f"{layer}.weight"]
        assert shapes[a] == (3, narrow) and shapes[b] == (wide, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_computes_what_peft_does(family):
    """Loss and every adapter's gradient, on transformers' own model with peft's own model on it."""
    config = tiny_config(language=family)
    plain = tiny_model(config, deviation=0.1)
    ours = with_adapters(plain)
    set_trainable(ours, TRAINED)
    samples = draw_samples(config, MIXED)
    loss = ours(pack(config, samples)).mean()
    loss.backward()

    twin = transformers_twin(plain)
    theirs = get_peft_model(twin.language_model, peft_config(LORA, config.text_config.model_type))
    prefix = "base_model.model."
    values = {
        prefix + name.removeprefix("language_model."): parameter.detach()
        for name, parameter in ours.trainable()
    }
    left = set_peft_model_state_dict(theirs, values)
    assert not left.unexpected_keys
    twin.language_model = theirs.base_model.model
    wanted = twin.eval()(**pad(config, samples)).loss
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    wanted.backward()
    found = dict(theirs.named_parameters())
    for name, parameter in ours.trainable():
        own = prefix + name.removeprefix("language_model.").replace(".weight", ".default.weight")
        assert relative_error(parameter.grad, found[own].grad) < 1e-5, name


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_equals_applied(family):
    config = tiny_config(language=family)
    plain = tiny_model(config, deviation=0.1)
    applied = with_adapters(plain)
    weights = dict(applied.weights())
    merged = InstructBlip(config).eval()
    with torch.no_grad():
        for name, parameter in merged.weights():
            a, b = adapter_names(name)
            value = weights[name]
            if a in weights:
                value = merged_weight(value, weights[a], weights[b], LORA)
            parameter.copy_(value)
    batch = pack(config, draw_samples(config, MIXED))
    assert relative_error(merged.logits(batch), applied.logits(batch)) < 1e-5
    assert relative_error(plain.logits(batch), applied.logits(batch)) > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_new_adapters_change_nothing(family):
    config = tiny_config(language=family)
    plain = tiny_model(config)
    model = with_adapters(plain)
    source = AdapterSource(parameter_shapes(config, lora=LORA), seed=4)
    with torch.no_grad():
        for name, parameter in model.weights():
            if is_adapter(name):
                parameter.copy_(source.get(name))
    batch = pack(config, draw_samples(config, MIXED))
    assert relative_error(model(batch), plain(batch)) < 1e-6
    first = next(name for name in source.shapes() if name.endswith("lora_A.weight"))
    bound = 1 / math.sqrt(source.shapes()[first][1])
    assert 0.5 * bound < source.get(first).abs().max() <= bound
    assert torch.equal(source.get(first), AdapterSource(source.shapes(), seed=4).get(first))
    assert not torch.equal(source.get(first), AdapterSource(source.shapes(), seed=5).get(first))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recompute", [False, True])
def test_adapters_alone_are_trained_and_dropout_acts(family, recompute):
    config = tiny_config(language=family)
    model = with_adapters(tiny_model(config), LORA.model_copy(update={"dropout": 0.4}))
    set_trainable(model, TRAINED)
    names = [name for name, _ in model.trainable()]
    assert names and all(is_adapter(name) for name in names)
    batch = pack(config, draw_samples(config, MIXED))
    plain = model(batch)
    model.recompute = recompute
    model.train()
    torch.manual_seed(0)
    dropped = model(batch)
    assert not torch.equal(plain, dropped)
    dropped.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for _, parameter in model.trainable())
    torch.manual_seed(0)
    assert relative_error(model(batch), dropped) < 1e-6


def test_a_target_that_is_no_linear_layer_is_named():
    lora = LoraSection(targets=("q_proj", "qproj"))
    config = tiny_config().text_config
    with pytest.raises(ValueError, match=r"targets names 'qproj', which is no linear .* up_proj"):
        build_language_model(config, lora)


def test_every_linear_layer_may_have_one():
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    names = parameter_shapes(tiny_config(), lora=LoraSection(targets=targets))
    assert sum(is_adapter(name) for name in names) == 2 * 2 * len(targets)


def section(**values) -> ModelSection:
    return ModelSection.model_validate({"base": "base", **values})


def test_settings_where_none_are_given():
    for parts in ({"language": "lora"}, TrainParts(language="lora")):
        assert section(train_parts=parts).lora == LoraSection(rank=16, alpha=32, dropout=0.05)
    assert section().lora is None
    chosen = section(train_parts={"language": "lora"}, lora={"rank": 4, "targets": ["q_proj"]})
    assert chosen.lora == LoraSection(rank=4, targets=("q_proj",))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lora": {"rank": 4}}, "model.lora is given, but train_parts.language is frozen"),
        (
            {"lora": {}, "train_parts": {"language": "full"}},
            "model.lora is given, but train_parts.language is full",
        ),
        ({"train_parts": {"language": "lora"}, "lora": {"rank": 0}}, "greater than or equal to 1"),
        ({"train_parts": {"language": "lora"}, "lora": {"dropout": 1.0}}, "less than 1"),
        ({"train_parts": {"language": "lora"}, "lora": {"targets": []}}, "at least 1 item"),
        (
            {"train_parts": {"language": "lora"}, "lora": {"targets": ["q", "q"]}},
            "targets names 'q' twice",
        ),
        ({"train_parts": {"vision": "lora"}}, "Input should be 'frozen' or 'full'"),
        (
            {"train_parts": dict.fromkeys(("vision", "qformer", "projection"), "frozen")},
            "every part is frozen",
        ),
    ],
)
def test_settings_that_make_no_sense(values, said):
    with pytest.raises(ValueError, match=said):
        section(**values)


@pytest.mark.parametrize("language", ["llama", "t5"])
def test_no_adapter_beside_an_output_that_is_the_input_too(language):
    """Merged, it would change the input embedding as well."""
    config = tiny_config(language=language).text_config
    lora = LoraSection(rank=2, targets=("lm_head",))
    build_language_model(config, lora)
    config.tie_word_embeddings = True
    if hasattr(config, "scale_decoder_outputs"):  # what transformers 5 keeps of a T5's
        config.scale_decoder_outputs = True
    with pytest.raises(ValueError, match=r"lora\.targets names 'lm_head', whose weights are"):
        build_language_model(config, lora)
