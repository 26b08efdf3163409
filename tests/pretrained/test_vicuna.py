import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, T5Config

from ibtrain.pretrained.vicuna import NORM, check_vicuna, check_whole, names_of


class Norm:
    """A source that holds a last norm alone."""

    description = "here"

    def __init__(self, value: float) -> None:
        self.value = value

    def shapes(self):
        return {NORM: (4,)}

    def get(self, name):
        return torch.full((4,), self.value, dtype=torch.float16)


def released(**changes) -> LlamaConfig:
    """The configuration of Vicuna v1.1."""
    values = {"vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6}
    return LlamaConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, **values | changes
    )


@pytest.mark.parametrize("value", [0.0, 0.004, -0.01, float("nan")])
def test_a_raw_delta_is_named(value):
    with pytest.raises(ValueError, match="vicuna is a raw delta, not a model"):
        check_whole(Norm(value), "vicuna")


def test_a_whole_model_passes():
    check_whole(Norm(1.3), "vicuna")
    check_vicuna(released(), ["vicuna-7b-v1.1"], "here", alone=True)
    check_vicuna(released(vocab_size=32001), ["instructblip-vicuna-7b"], "here", alone=False)
    check_vicuna(released(), ["vicuna-7b"], "here", alone=True)


@pytest.mark.parametrize(
    ("changes", "names", "said"),
    [
        ({"max_position_embeddings": 4096}, [], r"Llama 2 as Vicuna v1\.5 is \(4096 positions"),
        ({"rms_norm_eps": 1e-5}, [], r"Llama 2 as Vicuna v1\.5"),
        ({"vocab_size": 32001}, [], "as Vicuna v0 with its padding token"),
        ({}, ["vicuna-7b-v1.5"], r"Vicuna v1\.5, and InstructBLIP was trained on v1\.1"),
        ({}, ["vicuna-7b-v1.5-16k"], r"Vicuna v1\.5, and"),
        ({}, ["base", "lmsys/vicuna-13b-v1.3"], r"Vicuna v1\.3, and"),
        ({}, ["vicuna-7b-v0"], "Vicuna v0, and"),
        ({}, ["models--lmsys--vicuna-7b-delta-v1.1"], "a raw delta and not a model"),
    ],
)
def test_another_vicuna_is_named(changes, names, said):
    with pytest.raises(ValueError, match=said):
        check_vicuna(released(**changes), names, "here", alone=True)


def test_what_a_model_is_called(tmp_path):
    config = released()
    config._name_or_path = "lmsys/vicuna-7b-v1.3"
    cached = tmp_path / "models--lmsys--vicuna-7b-v1.1" / "snapshots" / "0123"
    assert names_of(Path("bases/vicuna"), config) == ["vicuna", "lmsys/vicuna-7b-v1.3"]
    config._name_or_path = ""
    assert names_of(cached, config) == ["0123", "models--lmsys--vicuna-7b-v1.1"]


def test_the_name_that_config_json_has(tmp_path):
    directory = tmp_path / "language"
    config = released()
    config.save_pretrained(directory)
    values = json.loads((directory / "config.json").read_text())
    values["_name_or_path"] = "lmsys/vicuna-7b-v1.5"
    (directory / "config.json").write_text(json.dumps(values))
    opened = LlamaConfig.from_pretrained(directory)
    opened._name_or_path = str(directory)  # as AutoConfig leaves it
    assert names_of(directory, opened) == ["language", "lmsys/vicuna-7b-v1.5"]


def test_a_t5_is_no_vicuna():
    with pytest.raises(ValueError, match="here is of type 't5' and no Vicuna"):
        check_vicuna(T5Config(), ["flan-t5-xl"], "here", alone=True)
