import json
import weakref

import pytest
import torch

from ibtrain.export.weight_shards import write_weights
from ibtrain.pretrained.tensors import INDEX_NAME, SINGLE_NAME, SafetensorsSource

TENSORS = {f"part.{index}": torch.full((10,), float(index)) for index in range(5)}  # 40 bytes each


def test_small_weights_are_one_file(tmp_path):
    written = write_weights(TENSORS.items(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [SINGLE_NAME]
    assert (written.shards, written.parameters, written.bytes) == (1, 50, 200)
    assert written.dtype == torch.float32


@pytest.mark.parametrize(("shard_bytes", "shards"), [(100, 3), (80, 3), (40, 5), (1, 5), (160, 2)])
def test_shards_hold_everything_once(tmp_path, shard_bytes, shards):
    assert write_weights(TENSORS.items(), tmp_path, shard_bytes).shards == shards
    source = SafetensorsSource.of_directory(tmp_path)
    assert set(source.shapes()) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(source.get(name), tensor)
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    assert index["metadata"]["total_size"] == 200
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        f"model-{number + 1:05d}-of-{shards:05d}.safetensors" for number in range(shards)
    ]


def test_no_more_than_a_shard_is_held(tmp_path):
    alive = []

    def tensors():
        for index in range(6):
            tensor = torch.zeros(10)
            alive.append(weakref.ref(tensor))
            assert sum(reference() is not None for reference in alive) <= 3  # a shard, and this one
            yield f"part.{index}", tensor
            del tensor

    assert write_weights(tensors(), tmp_path, 80).shards == 3


def test_the_dtype_is_that_of_most_parameters(tmp_path):
    tensors = {"a": torch.zeros(2), "b": torch.zeros(30, dtype=torch.bfloat16)}
    assert write_weights(tensors.items(), tmp_path).dtype == torch.bfloat16


def test_a_file_system_that_does_not_take_it(tmp_path):
    with pytest.raises(OSError, match=r"absent/shard-0\.safetensors cannot be written"):
        write_weights(TENSORS.items(), tmp_path / "absent")


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no weights"):
        write_weights(iter(()), tmp_path)
    with pytest.raises(ValueError, match="size above 0"):
        write_weights(TENSORS.items(), tmp_path, 0)
