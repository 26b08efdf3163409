"""Parameters are given their tensors, and what is missing, unknown or of another shape is named."""

import pytest

from ibtrain.pretrained.fit import choose_sources, parameter_shapes
from ibtrain.pretrained.tensors import RandomSource
from tests.tiny import tiny_config


class Shapes:
    """A source of which only the shapes are asked."""

    def __init__(self, shapes, description="base here"):
        self.description = description
        self._shapes = shapes

    def shapes(self):
        return self._shapes

    def get(self, name):
        raise AssertionError("no values are needed to choose")


def test_the_last_source_that_has_a_tensor_is_taken():
    config = tiny_config()
    base = Shapes(parameter_shapes(config))
    name = "language_projection.weight"
    tuned = Shapes({name: base.shapes()[name]}, "checkpoint")
    chosen = choose_sources(config, True, [base, tuned])
    assert set(chosen) == set(base.shapes())
    assert {key for key, source in chosen.items() if source is tuned} == {name}


def test_the_ablation_leaves_the_text_weights_out():
    config = tiny_config()
    chosen = choose_sources(config, False, [Shapes(parameter_shapes(config))])
    assert set(chosen) == set(parameter_shapes(config, False))
    assert "qformer.embeddings.word_embeddings.weight" not in chosen


def test_position_ids_of_older_releases_are_passed_over():
    config = tiny_config()
    shapes = parameter_shapes(config) | {"qformer.embeddings.position_ids": (1, 64)}
    assert set(choose_sources(config, True, [Shapes(shapes)])) == set(parameter_shapes(config))


def test_an_unknown_tensor_is_named():
    config = tiny_config()
    shapes = parameter_shapes(config) | {"head.weight": (1,), "zzz": (1,)}
    with pytest.raises(ValueError, match=r"base here holds 2 tensors .* first is 'head\.weight'"):
        choose_sources(config, True, [Shapes(shapes)])


def test_a_wrong_shape_is_named():
    config = tiny_config()
    shapes = parameter_shapes(config) | {"language_projection.bias": (33,)}
    said = r"base here: language_projection\.bias is \[33\], the configuration wants \[32\]"
    with pytest.raises(ValueError, match=said):
        choose_sources(config, True, [Shapes(shapes)])


def test_missing_parameters_are_named():
    config = tiny_config()
    shapes = parameter_shapes(config)
    del shapes["query_tokens"], shapes["language_projection.bias"]
    said = r"2 parameters .* \(base here\).* first is 'language_projection\.bias'"
    with pytest.raises(ValueError, match=said):
        choose_sources(config, True, [Shapes(shapes)])


def test_what_is_missing_of_a_part_that_is_there(tmp_path):
    config = tiny_config()
    shapes = parameter_shapes(config)
    del shapes["language_model.lm_head.weight"]
    with pytest.raises(ValueError, match="1 of the language model; where a part is there and not"):
        choose_sources(config, True, [RandomSource(shapes, 0, 0.1)])
