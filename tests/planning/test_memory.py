"""By hand, on a model of round numbers: 10 tensors of 1,000 parameters and 10 of 10; 4 GPUs."""

import pytest

from ibtrain.planning.memory import Counts, Sharding
from ibtrain.sharding import read_sharding

COUNTS = Counts(
    total=10_100,
    trained=2_000,
    sizes=(1_000,) * 10 + (10,) * 10,
    trained_backward=8_100,
    bytes_each=2,
)
ACTIVATIONS = 1_000_000
RESERVE = 1_600_000_000 + 150_000
SINGLE = {"communication_data_type": "fp32", "data_types": {"grad_accum_dtype": "fp32"}}


def sharding(stage: int, world: int = 4, **zero) -> Sharding:
    zero = {"stage": stage, "reduce_bucket_size": 500} | zero
    return Sharding.of("own", SINGLE | {"zero_optimization": zero}, world)


def memory(one: Sharding) -> dict[str, int]:
    return one.memory(COUNTS, 4, ACTIVATIONS)


def expected(**parts: int) -> dict[str, int]:
    parts |= {"activations": ACTIVATIONS, "reserve": RESERVE}
    return parts | {"total": sum(parts.values())}


def test_zero1():
    """DeepSpeed's bf16 optimizer adds gradients up in fp32, whole, beside the model's own; what it
    sends lies where activations were."""
    one = sharding(1, overlap_comm=False)
    assert memory(one) == expected(
        weights=20_200,
        gathered=0,
        gradients=(4 + 2) * 2_000,
        optimizer=12 * 500,
        buckets=0,
    )
    assert one.memory(COUNTS, 4, 1_000)["buckets"] == 4 * 2_000 - 1_000


def test_zero1_in_one_dtype():
    """Gradients are added up as they are, whole, and their partition is taken out."""
    one = Sharding.of("own", {"zero_optimization": {"stage": 1, "reduce_bucket_size": 500}}, 4)
    found = one.memory(COUNTS, 4, ACTIVATIONS)
    assert (found["gradients"], found["buckets"]) == (2 * (2_000 + 500), 2 * 500)
    offloaded = memory(sharding(1, offload_optimizer={"device": "cpu"}))
    assert (offloaded["gradients"], offloaded["buckets"]) == (4 * (2_000 + 500), 4 * 500)


def test_zero2():
    """Two buckets of bf16 where sending overlaps; of what is sent copies in bf16 and fp32."""
    assert memory(sharding(2, overlap_comm=True)) == expected(
        weights=20_200,
        gathered=0,
        gradients=4 * 500,
        optimizer=12 * 500,
        buckets=2 * 2 * 500 + (2 + 4) * 500,
    )


def test_zero3():
    """Small tensors stay whole; no more lies gathered than is allowed."""
    limits = {
        "stage3_param_persistence_threshold": 10,
        "stage3_max_live_parameters": 3_000,
        "stage3_prefetch_bucket_size": 200,
    }
    assert memory(sharding(3, **limits)) == expected(
        weights=2 * (100 + 2_500),
        gathered=2 * 3_200,
        gradients=4 * 500,
        optimizer=12 * 500,
        buckets=2 * 4 * 500,
    )


def test_zero3_with_a_second_copy_in_the_node():
    one = sharding(3, stage3_param_persistence_threshold=10, zero_hpz_partition_size=2)
    assert memory(one)["weights"] == 2 * (100 + 2_500 + 5_000)


def test_zero3_with_everything_on_the_host():
    one = sharding(
        3,
        stage3_param_persistence_threshold=10,
        offload_param={"device": "cpu"},
        offload_optimizer={"device": "cpu"},
    )
    assert memory(one)["weights"] == 2 * 100
    assert memory(one)["optimizer"] == 0


def test_what_zero3_gathers():
    """For the forward all but the small ones; for the backward no frozen tower. Of a second copy
    all but what was updated since."""
    one = sharding(3, stage3_param_persistence_threshold=10)
    assert one.gathered_bytes(COUNTS, 4) == (2 * (10_000 + 8_000) * 3 // 4, 0)
    second = sharding(3, stage3_param_persistence_threshold=10, zero_hpz_partition_size=2)
    assert second.gathered_bytes(COUNTS, 4) == (2 * 2_000 * 3 // 4, 2 * (8_000 + 8_000) // 2)
    assert one.gathered_bytes(COUNTS, 1) == (0, 0)
    assert sharding(2).gathered_bytes(COUNTS, 4) == (0, 0)


def test_what_gradients_and_updates_send():
    whole = 4 * 2_000
    assert sharding(3).reduced_bytes(COUNTS, 4) == whole * 3 // 4
    assert sharding(2).reduced_bytes(COUNTS, 4) == 2 * whole * 3 // 4
    assert sharding(2).updated_bytes(COUNTS, 4) == 2 * 2_000 * 3 // 4
    assert sharding(3).updated_bytes(COUNTS, 4) == 0
    assert [sharding(stage).reductions(5) for stage in (1, 2, 3)] == [1, 5, 5]


def test_the_shipped_configurations_are_read_as_they_are():
    zero1, zero2, zero3 = (
        Sharding.of(name, read_sharding(name), 8) for name in ("zero1", "zero2", "zero3")
    )
    assert [one.stage for one in (zero1, zero2, zero3)] == [1, 2, 3]
    assert [one.overlaps for one in (zero1, zero2, zero3)] == [False, True, True]
    assert [one.keeps_inputs for one in (zero1, zero2, zero3)] == [False, False, True]
    assert all(one.accumulates_single and one.sends_single for one in (zero1, zero2, zero3))
    assert {one.bucket for one in (zero1, zero2, zero3)} == {50_000_000}
    assert zero3.live == 1_050_000_000
    assert not Sharding.of("zero3-cpu", read_sharding("zero3-cpu"), 8).keeps_inputs


def test_deepspeeds_defaults_stand_for_what_is_left_out():
    one = Sharding.of("own", {"zero_optimization": {"stage": 3}}, 8)
    assert (one.overlaps, one.contiguous, one.keeps_inputs) == (True, True, True)
    assert (one.bucket, one.live, one.persistent) == (500_000_000, 1_050_000_000, 100_000)
    assert (one.secondary, one.accumulates_single, one.sends_single) == (1, False, False)
    said = {"stage": 3, "reduce_bucket_size": "auto", "overlap_comm": None}
    assert Sharding.of("own", {"zero_optimization": said}, 8) == one


def test_gradients_are_sent_in_the_models_dtype_unless_said_otherwise():
    two, three = (
        Sharding.of("own", {"zero_optimization": {"stage": stage, "reduce_bucket_size": 500}}, 4)
        for stage in (2, 3)
    )
    assert three.reduced_bytes(COUNTS, 4) == 2 * 2_000 * 3 // 4
    assert memory(two)["buckets"] == 2 * 500 + 2 * 500
    assert memory(three)["buckets"] == 2 * 2 * 500


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "sharding 'own' has ZeRO stage 0; use 1, 2 or 3"),
        ({"zero_optimization": {"stage": 0}}, "ZeRO stage 0"),
        ({"zero_optimization": {"stage": "3"}}, "ZeRO stage '3'; use 1, 2 or 3"),
        ({"zero_optimization": [3]}, r"sets zero_optimization to \[3\]; it is a JSON object"),
        (SINGLE | {"zero_optimization": True}, "sets zero_optimization to True"),
        ({"zero_optimization": {"stage": 2}, "data_types": "fp32"}, "sets data_types to 'fp32'"),
        (
            {"zero_optimization": {"stage": 3, "reduce_bucket_size": "large"}},
            "sharding 'own' sets reduce_bucket_size to 'large'; give a number from 0 on",
        ),
        ({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": -2}}, "to -2; give a num"),
        (
            {"zero_optimization": {"stage": 3, "zero_quantized_weights": True}},
            "sets zero_quantized_weights, whose memory is not known here",
        ),
    ],
)
def test_what_cannot_be_planned(config, message):
    with pytest.raises(ValueError, match=message):
        Sharding.of("own", config, 8)
