"""Configurations in the words of other releases of transformers: the same logits, or a refusal."""

import json
from pathlib import Path

import pytest
import torch

from ibtrain.pretrained.configuration import read_config
from ibtrain.pretrained.opening import open_model
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


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"rope_theta": 10000.0, "rope_parameters": {"rope_theta": 500000.0}},
            r"text_config\.rope_parameters\.rope_theta is 500000\.0, and .* says 10000\.0 of it",
        ),
        ({"rope_parameters": {"rope_type": "spiral"}}, r"has the rope_type 'spiral'; a Llama's is"),
        ({"hiden_size": 8}, r"text_config\.hiden_size is 8, which transformers .* would ignore"),
    ],
)
def test_what_would_be_ignored_is_named(base, tmp_path, fields, said):
    with pytest.raises(ValueError, match=said):
        read_config(with_text(base, tmp_path / "changed", fields))
