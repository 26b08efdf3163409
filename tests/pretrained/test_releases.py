"""Configurations in the words of other releases of transformers: the same logits, or a refusal."""

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import InstructBlipForConditionalGeneration

from ibtrain.pretrained.configuration import read_config
from ibtrain.pretrained.opening import open_model
from ibtrain.pretrained.releases import IS_FIFTH
from tests.model.parity import MIXED, answer_logits, draw_samples, pack, pad
from tests.pretrained.test_opening import copied, logits
from tests.tiny import write_tiny_base


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_processor) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "base", tiny_processor)


def with_text(base: Path, target: Path, fields: dict) -> Path:
    """The base with other fields for its rotary positions."""
    file = copied(base, target) / "config.json"
    config = json.loads(file.read_text())
    for key in ("rope_theta", "rope_scaling", "rope_parameters"):
        config["text_config"].pop(key, None)
    config["text_config"] |= fields
    file.write_text(json.dumps(config))
    return target


@pytest.mark.parametrize("scaling", [{}, {"rope_type": "linear", "factor": 4.0}])
def test_rotary_positions_in_both_words(base, tmp_path, scaling):
    older = {"rope_theta": 500000.0, "rope_scaling": scaling or None}
    newer = {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"} | scaling}
    first = logits(open_model(with_text(base, tmp_path / "older", older)))
    second = logits(open_model(with_text(base, tmp_path / "newer", newer)))
    assert torch.equal(first, second)
    assert not torch.allclose(first, logits(open_model(base)))


ROPES = {
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 8, "beta_fast": 16.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


@pytest.mark.parametrize("words", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", ROPES)
def test_every_type_of_rotary_positions_is_transformers_own(base, tmp_path, kind, words):
    """Held against transformers' model of the same directory in the installed release's words."""
    theta = {"rope_theta": 5000.0}
    scaling = {"rope_type": kind} | ROPES[kind]
    older = {"rope_scaling": scaling} | theta
    newer = {"rope_parameters": scaling | theta}
    written = {"rope_scaling": older, "rope_parameters": newer}[words]
    few = {"max_position_embeddings": 32}
    ours = open_model(with_text(base, tmp_path / "ours", written | few)).model
    own = newer if IS_FIFTH else older
    theirs = InstructBlipForConditionalGeneration.from_pretrained(
        with_text(base, tmp_path / "theirs", own | few)
    ).eval()
    samples = draw_samples(ours.config, MIXED)
    padded = pad(ours.config, samples)
    with torch.no_grad():
        found = ours.logits(pack(ours.config, samples))
        wanted = answer_logits(ours.config, theirs(**padded).logits, padded["labels"])
        plain = open_model(base).model.logits(pack(ours.config, samples))
    assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"rope_theta": 10000.0, "rope_parameters": {"rope_theta": 500000.0}},
            r"text_config\.rope_parameters\.rope_theta is 500000\.0, and .* says 10000\.0 of it",
        ),
        ({"rope_parameters": {"rope_type": "spiral"}}, r"has the rope_type 'spiral'; a Llama's is"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            r"rope_scaling has the rope_type 'dynamic', whose positions change with the longest",
        ),
        (
            {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0]}},
            r"has the rope_type 'longrope', whose positions change with the longest text of",
        ),
        ({"vocab_size": "386"}, r"text_config\.vocab_size is '386'; a whole number is wanted"),
        ({"max_position_embeddings": 5e2}, r"max_position_embeddings is 500\.0; a whole number is"),
        ({"hiden_size": 8}, r"text_config\.hiden_size is 8, which transformers .* would ignore"),
    ],
)
def test_what_would_be_ignored_is_named(base, tmp_path, fields, said):
    with pytest.raises(ValueError, match=said):
        read_config(with_text(base, tmp_path / "changed", fields))
