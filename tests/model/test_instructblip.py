import math

import pytest
import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    InstructBlipConfig,
    LlamaForCausalLM,
    T5ForConditionalGeneration,
)

from ibtrain.config import LoraSection
from ibtrain.model.instructblip import InstructBlip, part_of, set_trainable
from ibtrain.model.lora import is_adapter
from ibtrain.pretrained.fit import parameter_shapes
from ibtrain.pretrained.published import published_config
from tests.model.parity import (
    EQUAL,
    FRAMES_AND_TEXT,
    MIXED,
    Lengths,
    answer_logits,
    assert_same_gradients,
    draw_samples,
    gradients,
    pack,
    pad,
    pad_language,
    relative_error,
)
from tests.tiny import tiny_config, tiny_model, transformers_twin, untie

SIZES = {
    "tiny": {},
    "odd widths, grouped keys": {
        "vision_width": 21,
        "vision_heads": 3,
        "qformer_width": 15,
        "qformer_heads": 3,
        "language_width": 36,
        "language_heads": 6,
        "language_key_heads": 2,
    },
    "vision heads of 88, 257 image tokens, grouped keys": {
        "vision_width": 176,
        "vision_layers": 1,
        "qformer_layers": 2,
        "image_size": 224,
        "patch_size": 14,
        "language_heads": 8,
        "language_key_heads": 2,
    },
    "one layer each, one query": {
        "vision_layers": 1,
        "qformer_layers": 1,
        "language_layers": 1,
        "query_tokens": 1,
        "language_key_heads": 1,
    },
    "four Q-Former layers": {"qformer_layers": 4, "qformer_heads": 4, "query_tokens": 5},
    "T5": {"language": "t5"},
    "T5, odd widths, a deeper decoder": {
        "language": "t5",
        "qformer_width": 15,
        "qformer_heads": 3,
        "language_width": 35,
        "language_heads": 5,
        "decoder_layers": 3,
    },
    "T5, vision heads of 88, 257 image tokens": {
        "language": "t5",
        "vision_width": 176,
        "vision_layers": 1,
        "qformer_layers": 2,
        "image_size": 224,
        "patch_size": 14,
        "query_tokens": 32,
    },
}
FAMILIES = ("llama", "t5")
BATCHES = {
    "mixed lengths": MIXED,
    "equal lengths": EQUAL,
    "frames and text": FRAMES_AND_TEXT,
    "empty instructions": (
        Lengths(images=1, language=0, qformer=0, answer=2),
        Lengths(images=2, language=1, qformer=3, answer=1),
        Lengths(images=1, language=4, qformer=0, answer=0),
    ),
}


def drawn_model(config: InstructBlipConfig, **options) -> InstructBlip:
    """A T5 does not scale its scores: with large weights its softmax magnifies every rounding."""
    deviation = 0.1 if config.text_config.is_encoder_decoder else 0.2
    return tiny_model(config, deviation=deviation, **options)


def compare_with_transformers(
    config: InstructBlipConfig,
    lengths: tuple[Lengths, ...],
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    ours = drawn_model(config, dtype=dtype)
    twin = transformers_twin(ours)
    samples = draw_samples(config, lengths)
    batch, inputs = pack(config, samples), pad(config, samples)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    theirs = twin(**inputs)

    wanted_logits = answer_logits(config, theirs.logits, inputs["labels"])
    assert wanted_logits.shape[0] == sum(of.answer + 1 for of in lengths)
    # The end of our computation is in fp32 whatever the weights are.
    logits_tolerance = max(tolerance, 1e-6)
    assert relative_error(ours.logits(batch), wanted_logits) < logits_tolerance

    loss = ours(batch).mean()
    assert loss.item() == pytest.approx(theirs.loss.item(), rel=logits_tolerance)
    assert_same_gradients(
        gradients(ours, loss), gradients(twin, theirs.loss), max(tolerance, logits_tolerance)
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("lengths", BATCHES)
def test_logits_loss_and_every_gradient_are_those_of_transformers(size, lengths):
    compare_with_transformers(tiny_config(**SIZES[size]), BATCHES[lengths], torch.float32, 1e-5)


@pytest.mark.parametrize("size", ["tiny", "odd widths, grouped keys", "T5"])
def test_parity_in_double_precision(size):
    """transformers takes its norms and T5's softmax in fp32 whatever the weights are."""
    compare_with_transformers(tiny_config(**SIZES[size]), MIXED, torch.float64, 3e-6)


def blip2_twin(ours: InstructBlip) -> Blip2ForConditionalGeneration:
    config = ours.config
    qformer = config.qformer_config.to_dict()
    qformer.pop("model_type")
    vision = config.vision_config.to_dict()
    vision.pop("model_type")
    twin = Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config=vision,
            qformer_config=Blip2QFormerConfig(**qformer).to_dict(),
            text_config=config.text_config.to_dict(),
            num_query_tokens=config.num_query_tokens,
            image_token_index=config.image_token_index,
        )
    )
    untie(twin.language_model)
    twin.load_state_dict({blip2_name(name): value for name, value in ours.state_dict().items()})
    return twin.eval()


def blip2_name(name: str) -> str:
    return name.replace("qformer.embeddings.layernorm", "qformer.layernorm")


@pytest.mark.parametrize("size", ["tiny", "odd widths, grouped keys", "T5"])
@pytest.mark.parametrize("lengths", BATCHES)
def test_without_instructions_it_is_blip2(size, lengths):
    config = tiny_config(**SIZES[size])
    ours = drawn_model(config, instruction_aware=False)
    twin = blip2_twin(ours)
    samples = draw_samples(config, BATCHES[lengths])
    batch, inputs = pack(config, samples), pad(config, samples)
    del inputs["qformer_input_ids"], inputs["qformer_attention_mask"]
    theirs = twin(**inputs)
    wanted_logits = answer_logits(config, theirs.logits, inputs["labels"])
    assert relative_error(ours.logits(batch), wanted_logits) < 1e-5
    loss = ours(batch).mean()
    assert loss.item() == pytest.approx(theirs.loss.item(), rel=1e-5)
    found = {blip2_name(name): value for name, value in gradients(ours, loss).items()}
    assert_same_gradients(found, gradients(twin, theirs.loss), 1e-5)


def test_the_instruction_reaches_the_visual_tokens_only_when_asked():
    config = tiny_config()
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    cu_text = torch.tensor([0, 3], dtype=torch.int32)
    for aware in (True, False):
        model = tiny_model(config, instruction_aware=aware)
        first, second = (
            model.visual_tokens(pixels, torch.tensor(ids), cu_text, 3)
            for ids in ([5, 6, 7], [5, 6, 8])
        )
        assert torch.equal(first, second) is not aware


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_without_images_trains_the_language_model_alone(family):
    config = tiny_config(language=family)
    model = tiny_model(config)
    samples = draw_samples(config, (Lengths(0, 6, 3, 2), Lengths(0, 3, 5, 4)))
    batch = pack(config, samples)
    assert batch.pixels_ICHW.shape == (1, 3, 16, 16)
    model(batch).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name  # every module ran
        if part_of(name) != "language":
            assert (parameter.grad == 0).all(), name

    kind = T5ForConditionalGeneration if family == "t5" else LlamaForCausalLM
    alone = kind(config.text_config).eval()
    untie(alone)
    alone.load_state_dict(model.language_model.state_dict())
    theirs = alone(**pad_language(config, samples))
    assert model(batch).mean().item() == pytest.approx(theirs.loss.item(), rel=1e-5)


def test_text_layers_run_without_text():
    """A rank whose images have no text still takes part in every sharded module."""
    config = tiny_config()
    model = tiny_model(config)
    batch = pack(config, draw_samples(config, (Lengths(1, 3, 0, 2),)))
    assert batch.max_text == 0
    model(batch).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    assert (model.qformer.embeddings.word_embeddings.weight.grad == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_only_sample_is_the_same_beside_images(family):
    config = tiny_config(language=family)
    model = tiny_model(config, dtype=torch.float64)
    samples = draw_samples(config, FRAMES_AND_TEXT)
    among = pack(config, samples)
    alone = pack(config, samples[1:2])
    assert alone.visual_rows_V.numel() == 0
    torch.testing.assert_close(
        model(among)[among.answer_sample_A == 1], model(alone), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("size", ["odd widths, grouped keys", "T5, odd widths, a deeper decoder"])
@pytest.mark.parametrize("lengths", BATCHES)
def test_a_sample_loses_the_same_alone_and_among_others(size, lengths):
    config = tiny_config(**SIZES[size])
    model = tiny_model(config, dtype=torch.float64)
    samples = draw_samples(config, BATCHES[lengths])
    together = pack(config, samples)
    losses = model(together)
    for index, sample in enumerate(samples):
        alone = model(pack(config, [sample]))
        got = losses[together.answer_sample_A == index]
        torch.testing.assert_close(got, alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_leaks_between_packed_samples(family):
    """With other content of the same lengths around it, a sample loses the same, bit for bit."""
    config = tiny_config(language=family)
    model = tiny_model(config)
    samples, others = (draw_samples(config, MIXED, seed) for seed in (0, 1))
    for index in range(len(samples)):
        mixed = [*others[:index], samples[index], *others[index + 1 :]]
        batch, changed = pack(config, samples), pack(config, mixed)
        mine = batch.answer_sample_A == index
        assert torch.equal(model(batch)[mine], model(changed)[mine])
        assert not torch.equal(model(batch)[~mine], model(changed)[~mine])


def test_frames_are_read_one_by_one_and_keep_their_order():
    config = tiny_config()
    model = tiny_model(config, dtype=torch.float64)
    (sample,) = draw_samples(config, (Lengths(images=4, language=3, qformer=6, answer=2),))
    batch = pack(config, [sample])
    assert batch.visual_rows_V.tolist() == list(range(12))
    embedded = model.embed(batch)
    text = torch.tensor([int(token) for token in sample.instruction.split("|")[1].split()])
    cu_text = torch.tensor([0, 6], dtype=torch.int32)
    for frame in range(4):
        alone = model.visual_tokens(sample.pixels_ICHW[frame : frame + 1], text, cu_text, 6)[0]
        torch.testing.assert_close(embedded[3 * frame : 3 * frame + 3], alone)
    instruction = [int(token) for token in sample.instruction.split("|")[0].split()]
    table = model.language_model.model.embed_tokens.weight
    assert torch.equal(embedded[12:15], table[instruction])


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_near(family):
    config = tiny_config(language=family)
    model = tiny_model(config)
    batch = pack(config, draw_samples(config, MIXED))
    exact = model(batch)
    rounded = model.to(torch.bfloat16)(batch)
    assert rounded.dtype == torch.float32
    assert relative_error(rounded, exact) < 0.03


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("query_tokens", "qformer"),
        ("qformer.encoder.layer.0.crossattention.attention.key.weight", "qformer"),
        ("qformer.embeddings.layernorm.bias", "qformer"),
        ("vision_model.post_layernorm.weight", "qformer"),
        ("vision_model.embeddings.class_embedding", "vision"),
        ("vision_model.encoder.layers.1.layer_norm1.bias", "vision"),
        ("language_projection.weight", "projection"),
        ("language_model.lm_head.weight", "language"),
    ],
)
def test_every_parameter_has_a_part(name, part):
    assert part_of(name) == part
    assert name in parameter_shapes(tiny_config())


def test_an_unknown_parameter_has_none():
    with pytest.raises(ValueError, match=r"'head\.weight' belongs to no part"):
        part_of("head.weight")


PAPER = {"vision": "frozen", "qformer": "full", "projection": "full", "language": "frozen"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("parts", ["frozen", "full"])
def test_gradient_checkpointing_changes_no_gradient(family, parts):
    """Dropout is drawn again as it was, and nothing that is frozen gets any."""
    config = tiny_config(language=family, dropout=0.1)
    batch = pack(config, draw_samples(config, MIXED))
    found = []
    for recompute in (False, True):
        model = drawn_model(config)
        set_trainable(model, {**PAPER, "vision": parts, "language": parts})
        model.recompute = recompute
        model.train()
        calls = count_calls(model)
        torch.manual_seed(3)
        losses = model(batch)
        assert all(count == 1 for count in calls.values())
        losses.sum().backward()
        again = {name for name, count in calls.items() if count == 2}
        assert again == (set(calls) if recompute else set()) - (
            {"vision"} if parts == "frozen" else set()
        )
        found.append((losses, {name: p.grad for name, p in model.trainable()}))
    assert torch.equal(found[0][0], found[1][0])
    for name, gradient in found[0][1].items():
        assert torch.equal(gradient, found[1][1][name]), name


def count_calls(model: InstructBlip) -> dict[str, int]:
    """How often a linear layer within each checkpointed part has run."""
    language = model.language_model
    if model.config.text_config.is_encoder_decoder:
        watched = {
            "encoder": language.encoder.block[0].layer[0].SelfAttention.q,
            "decoder": language.decoder.block[1].layer[1].EncDecAttention.k,
        }
    else:
        watched = {"decoder": language.model.layers[0].mlp.up_proj}
    watched["vision"] = model.vision_model.encoder.layers[0].mlp.fc1
    counts = dict.fromkeys(watched, 0)

    def count(name: str):
        def hook(*_) -> None:
            counts[name] += 1

        return hook

    for name, module in watched.items():
        module.register_forward_hook(count(name))
    return counts


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_trained_gets_the_gradients_it_has_when_everything_is(family):
    config = tiny_config(language=family)
    model = drawn_model(config)
    batch = pack(config, draw_samples(config, MIXED))
    everything = gradients(model, model(batch).sum())
    set_trainable(model, PAPER)
    model(batch).sum().backward()
    trained = [name for name, _ in model.trainable()]
    assert trained == [
        name for name, _ in model.named_parameters() if part_of(name) in ("qformer", "projection")
    ]
    assert "vision_model.post_layernorm.weight" in trained
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert list(found) == trained
    assert_same_gradients(found, {name: everything[name] for name in trained}, 1e-5)


@pytest.mark.parametrize(
    ("trained", "training"),
    [
        ({"qformer", "projection"}, {"qformer"}),
        ({"language"}, {"language_model"}),
        ({"projection"}, set()),
        ({"vision", "qformer", "projection", "language"}, {"qformer", "language_model"}),
    ],
)
def test_frozen_parts_stay_in_evaluation_mode(trained, training):
    model = tiny_model(tiny_config(dropout=0.1))
    set_trainable(model, {part: "full" if part in trained else "frozen" for part in PAPER})
    model.train()
    assert model.training
    found = {name for name in ("qformer", "language_model") if getattr(model, name).training}
    assert found == training
    model.eval()
    assert not any(module.training for module in model.modules())


def test_dropout_acts_in_the_qformer_while_it_is_trained():
    config = tiny_config(dropout=0.3)
    model = tiny_model(config)
    batch = pack(config, draw_samples(config, MIXED))
    plain = tiny_model(tiny_config())(batch)
    assert torch.equal(model(batch), plain)
    set_trainable(model, PAPER)
    model.train()
    torch.manual_seed(0)
    dropped = model(batch)
    assert not torch.equal(dropped, plain)
    torch.manual_seed(0)
    assert torch.equal(model(batch), dropped)
    set_trainable(model, {**PAPER, "qformer": "frozen"})
    model.train()
    assert torch.equal(model(batch), plain)


def test_images_of_another_size_are_refused():
    config = tiny_config()
    batch = pack(config, draw_samples(config, EQUAL))
    with pytest.raises(ValueError, match=r"images are \(16, 16\), the vision tower takes 24x24"):
        tiny_model(tiny_config(image_size=24))(batch)


def published(name: str, instruction_aware: bool = True) -> dict[str, int]:
    """Parameters of a released model."""
    shapes = parameter_shapes(published_config(name), instruction_aware)
    return {name: math.prod(shape) for name, shape in shapes.items()}


def counted(counts: dict[str, int], *prefixes: str) -> int:
    return sum(size for name, size in counts.items() if name.startswith(prefixes))


@pytest.mark.parametrize(
    ("name", "projection", "trainable", "language_total", "total"),
    [
        ("vicuna-7b", 3_149_824, 188_837_376, 6_738_423_808, 7_913_210_624),
        ("vicuna-13b", 3_937_280, 189_624_832, 13_015_874_560, 14_191_448_832),
        # Counted tied, and the second embedding that the released models have.
        ("flan-t5-xl", 1_574_912, 187_262_464, 2_783_959_040 + 65_798_144, 4_022_969_088),
        ("flan-t5-xxl", 3_149_824, 188_837_376, 11_003_736_064 + 131_596_288, 12_310_119_168),
    ],
    ids=["7B", "13B", "XL", "XXL"],
)
def test_published_sizes(name, projection, trainable, language_total, total):
    """The counts of the released models (with Vicuna's 32001 tokens)."""
    counts = published(name)
    assert counted(counts, "vision_model.") == 985_952_256
    assert counted(counts, "vision_model.post_layernorm.") == 2_816
    assert counted(counts, "qformer.") == 185_660_160
    assert counted(counts, "query_tokens") == 24_576
    assert counted(counts, "language_projection.") == projection
    assert counted(counts, "language_model.") == language_total
    paper = [size for name, size in counts.items() if part_of(name) in ("qformer", "projection")]
    assert sum(paper) == trainable
    assert sum(counts.values()) == total


def test_published_size_without_instructions():
    assert counted(published("vicuna-7b", False), "qformer.") == 105_137_664


def test_published_size_of_adapters():
    """Rank 16 beside every linear layer of a 13B: 16 times inputs and outputs together."""
    config = published_config("vicuna-13b")
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    shapes = parameter_shapes(config, lora=LoraSection(rank=16, targets=targets))
    adapters = sum(math.prod(shape) for name, shape in shapes.items() if is_adapter(name))
    assert adapters == 40 * 16 * (4 * (5120 + 5120) + 3 * (5120 + 13824)) == 62_586_880
    assert sum(map(math.prod, shapes.values())) == 14_191_448_832 + adapters
