"""The dry run on tensors without storage, against the same model on a CPU and against counts by
hand."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ibtrain.batch import Batch
from ibtrain.config import LoraSection, ModelSection
from ibtrain.data.mixture.collate import Sample, collate
from ibtrain.kernels import allow_triton
from ibtrain.kernels.backends import ENVIRONMENT
from ibtrain.kernels.triton_support import why_not_on
from ibtrain.model.instructblip import InstructBlip, set_trainable
from ibtrain.planning.dry_run import Lengths, build, dry_run, equal_batch
from tests.tiny import IMAGE_SIZE, QUERY_TOKENS, IdTokenizer, tiny_config

SAMPLES, LENGTHS = 4, Lengths(instruction=5, answer=3)


def section(**values) -> ModelSection:
    nothing = {"processor": "none", "vision": {}, "qformer": {}, "language": {}}
    return ModelSection.model_validate({"random_base": nothing, "precision": "fp32"} | values)


def collated(samples: int, lengths: Lengths, *, image_size: int = IMAGE_SIZE) -> Batch:
    """Equally long samples, packed as in training."""
    words = " ".join(["7"] * lengths.instruction)
    answer = " ".join(["9"] * (lengths.answer - 1))  # the end token is put behind it
    pixels = torch.zeros(1, 3, image_size, image_size)
    made = [Sample(pixels, f"{words} | {words}", answer, "data", "id") for _ in range(samples)]
    return collate(made, IdTokenizer(), query_tokens=QUERY_TOKENS, image_size=image_size)


def test_the_batch_has_the_shapes_of_a_collated_one():
    ours, real = equal_batch(tiny_config(), SAMPLES, LENGTHS), collated(SAMPLES, LENGTHS)
    for field in fields(Batch):
        made, wanted = getattr(ours, field.name), getattr(real, field.name)
        if isinstance(wanted, Tensor):
            assert (made.shape, made.dtype) == (wanted.shape, wanted.dtype), field.name
        elif isinstance(wanted, int):
            assert made == wanted, field.name


@pytest.mark.parametrize("language", ["llama", "t5"])
@pytest.mark.parametrize("recompute", [False, True])
def test_memory_is_that_of_the_same_step_on_a_cpu(language, recompute, monkeypatch):
    """The peak of what torch's allocator on the CPU gave out, as torch's profiler saw it.

    With torch's own attention in both; on a CPU it takes a way of its own, which is most of what
    is left of the difference.
    """
    monkeypatch.setenv(ENVIRONMENT, "sdpa")
    lengths = Lengths(24, 12)
    sizes = {"image_size": 56, "vision_width": 64, "qformer_width": 64, "language_width": 128}
    config = tiny_config(language=language, language_layers=4, **sizes)
    settings = section(gradient_checkpointing=recompute)
    run = dry_run(build(config, settings, kernels=False), 16, lengths, recompute=recompute)
    model = real_model(config, settings)
    batch = collated(16, lengths, image_size=56)
    model(batch).sum().backward()
    measured = allocated(model, batch)
    assert measured <= run.peak_bytes < 1.1 * measured


def real_model(config, settings: ModelSection) -> InstructBlip:
    model = InstructBlip(config, recompute=settings.gradient_checkpointing, kernels=False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    set_trainable(model, settings.train_parts.model_dump())
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda one: setattr(one, "grad", None))
    model.train()
    return model


def allocated(model: InstructBlip, batch: Batch) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        own = replace(batch, pixels_ICHW=batch.pixels_ICHW.clone())
        model(own).sum().backward()
    kineto = watched.profiler.kineto_results
    events = [event for event in kineto.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def products(parameters: int, rows: int, passes: int) -> int:
    return 2 * parameters * rows * passes


@pytest.mark.parametrize(
    ("trained", "language_passes"),
    [("frozen", 2), ("full", 3)],
)
def test_a_frozen_language_model_computes_two_thirds(trained, language_passes):
    """Every linear layer by hand: its forward, the gradient of its input, that of its weight."""
    config = tiny_config(vision_width=32, qformer_width=32)  # heads of 16, as kernels take them
    model = build(config, section(train_parts={"language": trained}), kernels=True)
    run = dry_run(model, SAMPLES, LENGTHS, recompute=False)
    vision, qformer, language = config.vision_config, config.qformer_config, config.text_config
    patches = (IMAGE_SIZE // vision.patch_size) ** 2
    tower, text = SAMPLES * (patches + 1), SAMPLES * LENGTHS.instruction
    query, prompt = SAMPLES * QUERY_TOKENS, QUERY_TOKENS + LENGTHS.instruction
    row = prompt + LENGTHS.answer - 1

    width, inner = vision.hidden_size, vision.intermediate_size
    expected = products(3 * width * vision.patch_size**2, SAMPLES * patches, 1)
    expected += vision.num_hidden_layers * (
        products(4 * width**2 + 2 * width * inner, tower, 1)
        + 4 * tower * (patches + 1) * width  # scores and output
    )
    own, deep = qformer.hidden_size, qformer.intermediate_size
    seen = QUERY_TOKENS + LENGTHS.instruction
    for layer in range(qformer.num_hidden_layers):
        expected += products(4 * own**2, query + text, 3)
        expected += (4 + 10) * (query + text) * seen * own
        expected += products(2 * own * deep, query + text, 3)
        if layer % qformer.cross_attention_frequency == 0:
            expected += products(2 * own**2, query, 3)
            # The image tokens' gradient is asked for: the tower's last norm is trained.
            expected += products(2 * own * width, tower, 3)
            expected += (4 + 10) * query * (patches + 1) * own
    expected += products(own * language.hidden_size, query, 3)
    hidden = language.hidden_size
    layer_size = 4 * hidden**2 + 3 * hidden * language.intermediate_size
    pairs = SAMPLES * row * (row + 1) // 2
    expected += language.num_hidden_layers * (
        products(layer_size, SAMPLES * row, language_passes) + (4 + 10) * pairs * hidden
    )
    expected += products(hidden * language.vocab_size, SAMPLES * LENGTHS.answer, language_passes)
    assert run.flops == expected


def test_what_is_computed_again_is_counted_and_not_kept():
    config = tiny_config(language_layers=6)
    model = build(config, section(gradient_checkpointing=True), kernels=True)
    once = dry_run(model, SAMPLES, LENGTHS, recompute=False)
    again = dry_run(model, SAMPLES, LENGTHS, recompute=True)
    assert again.peak_bytes < once.peak_bytes
    language = config.text_config
    hidden, inner = language.hidden_size, language.intermediate_size
    row = QUERY_TOKENS + LENGTHS.instruction + LENGTHS.answer - 1
    # All of a layer but its last product, whose result no gradient needs.
    layer = products(4 * hidden**2 + 2 * hidden * inner, SAMPLES * row, 1)
    layer += 4 * SAMPLES * row * (row + 1) // 2 * hidden
    assert again.flops - once.flops == 6 * layer
    assert again.module_calls - once.module_calls == 6 * 8  # not down_proj: it is stopped there
    # transformers 5 has the frozen embedding's result ask for a gradient as well.
    assert again.module_calls_with_gradient - once.module_calls_with_gradient in (0, 1)


def test_calls_of_modules_that_have_parameters():
    config = tiny_config(vision_layers=1, qformer_layers=1, language_layers=1)
    model = build(config, section(), kernels=True)
    run = dry_run(model, 1, LENGTHS, recompute=False)
    tower = 2 + 6 + 1  # embeddings and their convolution, a block's four products and two norms
    # Words, positions and norm; self and cross attention of five each; two feed-forwards of three.
    qformer = 3 + 5 + 5 + 6
    language = 1 + 9 + 1 + 1  # embedding, a layer's seven products and two norms, norm, logits
    whole = 1  # the model itself has the query tokens
    assert run.module_calls == tower + qformer + 1 + language + whole
    # Without one are all of the tower but its last norm, and the embedding of frozen words.
    assert run.module_calls_with_gradient == 1 + qformer + 1 + (language - 1) + whole


def test_inputs_that_deepspeed_keeps():
    """Of a frozen linear layer torch keeps no input; DeepSpeed's function under ZeRO-3 does."""
    config = tiny_config(language_layers=8)
    model = build(config, section(), kernels=True)
    plain = dry_run(model, SAMPLES, LENGTHS, recompute=False)
    kept = dry_run(model, SAMPLES, LENGTHS, recompute=False, keeps_inputs=True)
    assert kept.flops == plain.flops
    hidden, inner = config.text_config.hidden_size, config.text_config.intermediate_size
    row = QUERY_TOKENS + LENGTHS.instruction + LENGTHS.answer - 1
    # Both norms' results and the gated activation of each layer; what attention keeps anyway is
    # not kept twice. Fewer layers than all, for the peak lies within the backward.
    layer = 4 * SAMPLES * row * (2 * hidden + inner)
    assert 7 * layer <= kept.peak_bytes - plain.peak_bytes <= 9 * layer


def test_a_trained_part_takes_its_gradients_away():
    """Gradients are DeepSpeed's as soon as they are whole: the peak does not hold all of them."""
    config = tiny_config(language_layers=8)
    model = build(config, section(train_parts={"language": "full"}), kernels=True)
    run = dry_run(model, 1, Lengths(2, 2), recompute=False)
    gradients = 4 * sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert run.peak_bytes < gradients
    assert all(one.grad is None for one in model.parameters())


@pytest.mark.parametrize("language", ["llama", "t5"])
def test_adapters_and_kernels_run_without_storage(language):
    config = tiny_config(language=language, dropout=0.1)
    settings = section(train_parts={"language": "lora"}, lora=LoraSection().model_dump())
    for kernels in (True, False):
        model = build(config, settings, kernels=kernels)
        run = dry_run(model, 2, LENGTHS, recompute=True)
        assert run.flops > 0


@pytest.mark.parametrize("named", ["", "flash", "torch_varlen"])
def test_attention_without_our_kernels_keeps_no_scores(named, monkeypatch):
    """With `kernels: off` a GPU computes attention by a library, which keeps what ours keeps."""
    monkeypatch.setenv(ENVIRONMENT, named)
    config = tiny_config(vision_width=32, qformer_width=32)
    lengths = Lengths(instruction=5, answer=200)
    off, auto = (
        dry_run(build(config, section(), kernels=kernels), 1, lengths, recompute=False)
        for kernels in (False, True)
    )
    assert off.flops == auto.flops
    scores = 4 * config.text_config.num_attention_heads * (QUERY_TOKENS + 5 + 200) ** 2
    assert max(operation.bytes for operation in off.operations) < scores


def test_what_a_process_forbids_does_not_matter():
    """A run with `kernels: off` forbids Triton for its process; no plan asks or changes that."""
    model = build(tiny_config(vision_width=32, qformer_width=32), section(), kernels=True)
    allowed = dry_run(model, 1, LENGTHS, recompute=False)
    try:
        allow_triton(False)
        assert dry_run(model, 1, LENGTHS, recompute=False) == allowed
        assert why_not_on(torch.device("cpu")) == "the recipe forbids them (kernels: off)"
    finally:
        allow_triton(True)


def test_lengths_of_nothing_are_refused():
    with pytest.raises(ValueError, match="a sample of 0 answer tokens"):
        Lengths(3, 0)
