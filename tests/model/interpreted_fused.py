"""The whole tiny InstructBLIP with every kernel on, under Triton's interpreter, against off.

Run by tests/kernels/test_interpreted.py in a process of its own (TRITON_INTERPRET=1).
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ibtrain.config import LoraSection
from ibtrain.kernels import allow_triton
from ibtrain.model.instructblip import InstructBlip, set_trainable
from tests.model.parity import FRAMES_AND_TEXT, MIXED, assert_same_gradients, draw_samples, pack
from tests.tiny import tiny_config, tiny_model

# Head widths that the kernels take: 16, and for the tower 88 with its 257 image tokens.
SMALL = {"vision_width": 32, "qformer_width": 32, "language_key_heads": 2}
TOWER = SMALL | {
    "vision_width": 176,
    "vision_layers": 1,
    "qformer_layers": 2,
    "image_size": 224,
    "patch_size": 14,
}
TWO = MIXED[:2]
ATTENTION = {"varlen_attention", "varlen_attention_backward"}
NORMS = {"rms_norm", "add_rms_norm", "rms_norm_backward", "gated_act", "gated_act_backward"}


class Operators(TorchDispatchMode):
    """The names of our operators that were called."""

    def __init__(self):
        super().__init__()
        self.called = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "ibtrain":
            self.called.add(function._opname)
        return function(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _kernels_allowed_again():
    yield
    allow_triton(True)


def model_of(config, language, recompute, kernels):
    lora = LoraSection(rank=2, dropout=0.0) if language == "lora" else None
    # A T5 does not scale its scores: with large weights its softmax magnifies every rounding.
    whole = tiny_model(config, deviation=0.05 if config.text_config.is_encoder_decoder else 0.1)
    model = InstructBlip(config, True, lora, recompute, kernels=kernels)
    generator = torch.Generator().manual_seed(9)
    weights = dict(whole.weights())
    with torch.no_grad():
        for name, parameter in model.weights():
            drawn = 0.1 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(weights.get(name, drawn))
    parts = {"vision": "frozen", "qformer": "full", "projection": "full", "language": language}
    set_trainable(model, parts)
    return model.train()


def computed(model, batch):
    """The loss, every trainable gradient, and which of our operators took part."""
    with Operators() as operators:
        loss = model(batch).mean()
        names, parameters = zip(*model.trainable(), strict=True)
        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return loss, dict(zip(names, found, strict=True)), operators.called


@pytest.mark.parametrize(
    ("family", "sizes", "lengths", "language", "recompute"),
    [
        ("llama", SMALL, MIXED, "frozen", False),
        ("llama", SMALL, FRAMES_AND_TEXT, "lora", True),
        ("llama", TOWER, TWO, "lora", False),
        ("t5", SMALL, MIXED, "frozen", True),
        ("t5", SMALL, FRAMES_AND_TEXT, "full", False),
        ("t5", TOWER, TWO, "lora", False),
    ],
)
def test_kernels_on_equal_kernels_off(family, sizes, lengths, language, recompute):
    config = tiny_config(language=family, **sizes)
    if family == "t5":
        config.text_config.d_kv = 16
    batch = pack(config, draw_samples(config, lengths))
    results = {}
    for kernels in (True, False):
        allow_triton(kernels)
        results[kernels] = computed(model_of(config, language, recompute, kernels), batch)
    (loss, gradients, called), (plain_loss, plain_gradients, plain_called) = results.values()
    wanted = ATTENTION | NORMS | ({"rope"} if family == "llama" else set())
    assert wanted <= called
    assert not plain_called
    assert abs(loss - plain_loss) <= 1e-6 * abs(plain_loss)
    assert_same_gradients(gradients, plain_gradients, 1e-5)
