"""Loading under ZeRO-3: each rank takes its own slices, and little more memory than they need."""

import math

import pytest
import torch

from ibtrain.pretrained.fit import parameter_shapes
from ibtrain.training.loading import _copy_slice
from tools import bench_load


@pytest.mark.parametrize(("numbers", "world"), [(12, 2), (13, 2), (13, 4), (3, 4), (1, 3)])
def test_slices_make_up_the_tensor(numbers, world):
    value = torch.arange(1.0, numbers + 1).reshape(1, numbers)
    size = math.ceil(numbers / world)
    parts = [torch.full((size,), torch.nan, dtype=torch.bfloat16) for _ in range(world)]
    for rank, part in enumerate(parts):
        _copy_slice(value, part, rank)
    joined = torch.cat(parts)
    assert joined[:numbers].tolist() == value.flatten().tolist()
    assert not joined[numbers:].any()


@pytest.mark.timeout(900)
def test_no_rank_holds_more_than_its_share(tmp_path):
    """20 shards, two processes; resident memory is read while they load.

    The bound is the partition, the largest tensor and 2 GiB. A small model would meet it if every
    rank held all of it, so the 2 GiB are replaced by what the libraries have taken before, and a
    tenth of the model.
    """
    gigabytes = 1.0
    bench_load.write_model(tmp_path / "model", gigabytes, shards=19, stored="bf16")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) >= 20
    shapes = parameter_shapes(bench_load.scaled_config(gigabytes))
    sizes = [2 * math.prod(shape) for shape in shapes.values()]
    ranks = bench_load.run("ibtrain", tmp_path / "model", 2)
    assert sum(rank["partition"] for rank in ranks) >= sum(sizes)
    for rank in ranks:
        bound = rank["partition"] + max(sizes) + rank["before"] + sum(sizes) / 10
        assert rank["peak"] < bound < rank["before"] + sum(sizes)
