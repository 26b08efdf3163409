import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ibtrain.model.instructblip import set_trainable
from ibtrain.pretrained.configuration import read_config
from ibtrain.pretrained.fit import choose_sources
from ibtrain.pretrained.tensors import INDEX_NAME, SINGLE_NAME, RandomSource, SafetensorsSource
from tests.tiny import tiny_config, tiny_model, transformers_twin


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Tensor one in one file, tensors two and three in another, and the index."""
    shards = {
        "model-00001-of-00002.safetensors": {"one": torch.arange(6.0).reshape(2, 3)},
        "model-00002-of-00002.safetensors": {"two": torch.ones(4), "three": torch.zeros(1, 2)},
    }
    for name, tensors in shards.items():
        save_file(tensors, tmp_path / name)
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    (tmp_path / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tmp_path


def test_a_single_file(tmp_path):
    save_file({"one": torch.arange(6.0).reshape(2, 3)}, tmp_path / SINGLE_NAME)
    source = SafetensorsSource.of_directory(tmp_path)
    assert source.shapes() == {"one": (2, 3)}
    assert source.get("one").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert source.description == f"base {tmp_path}"


def test_shards(sharded):
    source = SafetensorsSource.of_directory(sharded)
    assert source.shapes() == {"one": (2, 3), "two": (4,), "three": (1, 2)}
    assert source.get("one").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert source.get("two").tolist() == [1, 1, 1, 1]


def test_what_transformers_saves_is_read(tmp_path):
    model = tiny_model(tiny_config())
    transformers_twin(model).save_pretrained(tmp_path, max_shard_size="60KB")
    assert (tmp_path / INDEX_NAME).is_file()
    source = SafetensorsSource.of_directory(tmp_path)
    config = read_config(tmp_path)
    assert set(choose_sources(config, True, [source])) == set(dict(model.named_parameters()))
    for name, parameter in model.named_parameters():
        assert torch.equal(source.get(name), parameter), name


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"base .*: the shard model\.safetensors is missing; copy"):
        SafetensorsSource.of_directory(tmp_path)


def test_a_missing_shard(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"the shard model-00002-of-00002\.safetensors is missing"):
        SafetensorsSource.of_directory(sharded)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.int64])
def test_weights_are_floating_point(tmp_path, dtype):
    save_file({"one": torch.zeros(2, dtype=dtype)}, tmp_path / SINGLE_NAME)
    with pytest.raises(ValueError, match=r"model\.safetensors: one is .*, and weights are F32"):
        SafetensorsSource.of_directory(tmp_path)


def test_a_shard_of_another_dtype_is_named(tmp_path):
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for number, file in enumerate(files):
        dtype = torch.float16 if number == 1 else torch.bfloat16
        own = {
            f"layers.{number}.weight": torch.ones(2, dtype=dtype),
            f"norm{number}x": torch.ones(1),
        }
        save_file(own, file)
    with pytest.raises(ValueError, match=r"1\.safetensors: layers\.1\.weight is F16, .* is BF16"):
        SafetensorsSource(files, "base")


@pytest.mark.parametrize("kept", [0, 4, 30, -1])
def test_a_truncated_file(sharded, kept):
    file = sharded / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"00002\.safetensors is not a whole safetensors file"):
        SafetensorsSource.of_directory(sharded)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/b", "../..", 7])
def test_an_index_may_not_leave_its_directory(sharded, name):
    (sharded / INDEX_NAME).write_text(json.dumps({"weight_map": {"one": name}}))
    with pytest.raises(ValueError, match="which is not a plain file name"):
        SafetensorsSource.of_directory(sharded)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"one": []}}', "\udc80"]
)
def test_a_broken_index(sharded, text):
    (sharded / INDEX_NAME).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"index\.json is not an index of safetensors shards"):
        SafetensorsSource.of_directory(sharded)


SHAPES = {"a.weight": (3, 4), "norm.weight": (5,), "norm.bias": (5,), "query_tokens": (1, 2, 3)}


def test_random_weights_follow_seed_and_name_alone():
    forward = {name: RandomSource(SHAPES, 3, 0.5).get(name) for name in SHAPES}
    source = RandomSource(dict(reversed(SHAPES.items())), 3, 0.5)
    torch.manual_seed(9)
    for name in reversed(SHAPES):
        source.get("a.weight")
        assert torch.equal(source.get(name), forward[name])
    assert source.shapes() == SHAPES
    assert forward["norm.bias"].tolist() == [0] * 5
    assert forward["norm.weight"].tolist() == [1] * 5
    for other in (RandomSource(SHAPES, 4, 0.5), RandomSource({"b.weight": (3, 4)}, 3, 0.5)):
        name = next(iter(other.shapes()))
        assert not torch.equal(other.get(name), forward["a.weight"])


def test_random_weights_have_the_deviation():
    drawn = RandomSource({"a.weight": (200, 200)}, 0, 0.02).get("a.weight")
    assert drawn.std() == pytest.approx(0.02, rel=0.02)
    assert drawn.mean() == pytest.approx(0.0, abs=0.0005)


def test_random_weights_stay_as_they_are():
    """Written down: a later release draws the same, so that a seed keeps its meaning."""
    pinned = [0.9241400361061096, 0.11347533017396927, 0.2700612545013428, -0.06888586282730103]
    drawn = RandomSource({"query_tokens": (1, 2, 2)}, 1, 1.0).get("query_tokens")
    torch.testing.assert_close(drawn.flatten(), torch.tensor(pinned), rtol=0, atol=1e-6)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    files = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for number, file in enumerate(files):
        save_file({"one": torch.full((2,), float(number))}, file)
    with pytest.raises(ValueError, match=r"0\.safetensors and .*1\.safetensors both hold one"):
        SafetensorsSource(files, "base")


@pytest.mark.parametrize("trained", ["vision", "qformer", "projection", "language"])
def test_set_trainable(trained):
    model = tiny_model(tiny_config())
    parts = dict.fromkeys(("vision", "qformer", "projection", "language"), "frozen")
    set_trainable(model, parts | {trained: "full"})
    found = {name for name, _ in model.trainable()}
    prefixes = {
        "vision": ("vision_model.embeddings.", "vision_model.encoder."),
        "qformer": ("qformer.", "query_tokens", "vision_model.post_layernorm."),
        "projection": ("language_projection.",),
        "language": ("language_model.",),
    }[trained]
    assert found == {n for n, _ in model.named_parameters() if n.startswith(prefixes)}
    assert found


def test_an_index_that_an_older_save_left_is_passed_over(tmp_path):
    """transformers removes the shards of it, and not the index."""
    twin = transformers_twin(tiny_model(tiny_config()))
    twin.save_pretrained(tmp_path, max_shard_size="60KB")
    twin.save_pretrained(tmp_path)
    assert (tmp_path / INDEX_NAME).is_file()
    source = SafetensorsSource.of_directory(tmp_path)
    for name, parameter in twin.named_parameters():
        assert torch.equal(source.get(name), parameter), name
