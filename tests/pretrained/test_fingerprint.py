"""A base's fingerprint covers what changes its numbers, alike in the words of every release."""

import pytest
from transformers import LlamaConfig

from ibtrain.pretrained.fingerprint import fingerprint
from ibtrain.pretrained.releases import translated
from ibtrain.tokenization import InstructionTokenizer
from tests.tiny import tiny_config

USUAL = "1860ce86"


def config_digest(tokenizer: InstructionTokenizer, **text) -> str:
    config = tiny_config()
    values = config.text_config.to_dict()
    for key in ("rope_theta", "rope_scaling", "rope_parameters"):
        values.pop(key, None)
    config.text_config = LlamaConfig(**translated(values | text, LlamaConfig, "config.json"))
    return fingerprint(config, tokenizer, {})["config"]


@pytest.fixture(scope="module")
def tokenizer(tiny_processor) -> InstructionTokenizer:
    return InstructionTokenizer.from_directory(tiny_processor)


SCALED = {"rope_type": "linear", "factor": 2.0}


def test_the_usual_rotary_positions_leave_it_as_it_was(tokenizer):
    """What was written before the positions counted is recognised."""
    for text in ({}, {"rope_theta": 10000}, {"rope_parameters": {"rope_type": "default"}}):
        assert config_digest(tokenizer, **text)[:8] == USUAL


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ({"rope_theta": 500000}, {"rope_parameters": {"rope_theta": 500000.0}}),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, {"rope_parameters": SCALED}),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4,
                    "original_max_position_embeddings": 512,
                }
            },
        ),
    ],
)
def test_other_rotary_positions_change_it_alike_in_all_words(tokenizer, older, newer):
    digest = config_digest(tokenizer, **older)
    assert digest[:8] != USUAL
    assert digest == config_digest(tokenizer, **newer)


def test_each_of_the_numbers_counts(tokenizer):
    digests = {
        config_digest(tokenizer, rope_parameters=SCALED | change)
        for change in ({}, {"factor": 3.0}, {"rope_theta": 20000.0})
    }
    assert len(digests) == 3
