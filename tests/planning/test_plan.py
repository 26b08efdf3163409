"""Plans of the published sizes, and of what does not fit."""

import re

import pytest
import torch

from ibtrain.config import Recipe, load_recipe
from ibtrain.planning.devices import device_named
from ibtrain.planning.dry_run import Lengths
from ibtrain.planning.plan import Choice, Cluster, because, choose, make_plan
from ibtrain.pretrained.published import LANGUAGE_MODELS
from tests.tiny import tiny_architecture

GB = 10**9


def cluster(device: str = "h100", nodes: int = 1, gpus_per_node: int = 8, **more) -> Cluster:
    return Cluster(nodes, gpus_per_node, device_named(device), **more)


def random_recipe(language: dict, **overrides) -> Recipe:
    """Random weights of an exact shape: nothing of it is on a disk."""
    recipe = load_recipe("vicuna7b").model_dump()
    recipe["model"] |= {
        "parts": None,
        "random_base": {
            "processor": "none",
            "vision": {},
            "qformer": {"vocab_size": 30523},
            "language": language,
        },
    }
    recipe["training"] |= overrides
    return Recipe.model_validate(recipe)


@pytest.mark.parametrize(
    ("size", "total", "trained"),
    [
        ("vicuna-7b", 7_913_210_624, 188_837_376),
        ("vicuna-13b", 14_191_448_832, 189_624_832),
        ("flan-t5-xl", 4_022_969_088, 187_262_464),
        ("flan-t5-xxl", 12_310_119_168, 188_837_376),
    ],
)
def test_random_weights_of_the_exact_shapes(size, total, trained):
    """Counted as published (T5 untied); nothing is stored and no weights are needed."""
    plan = make_plan(random_recipe(dict(LANGUAGE_MODELS[size])), cluster())
    assert (plan.parameters, plan.trained_parameters) == (total, trained)
    assert plan.architecture == "the base's own configuration"
    assert [choice.sharding for choice in plan.choices] == ["zero1", "zero2", "zero3"]
    replica = plan.choices[1].memory_bytes_per_gpu
    assert replica["weights"] == 2 * total
    assert replica["total"] == sum(size for name, size in replica.items() if name != "total")
    assert plan.chosen == "zero2"


def test_a_shipped_recipe_without_its_weights():
    """13B: about 52 GB of gathers for each GPU and micro-batch, and the tower's 2 once."""
    plan = make_plan(load_recipe("vicuna13b"), cluster("a100-40g", nodes=2))
    assert plan.architecture.startswith("vicuna-13b as published, for ")
    zero2, zero3 = plan.choices[1:3]
    language = 2 * 13_015_874_560
    assert 2 * language * 15 / 16 < zero3.gathered_bytes_per_micro_batch < 2 * language * 1.06
    assert zero2.gathered_bytes_per_micro_batch == 0
    # What zero2 sends: fp32 gradients, twice, and updated weights.
    assert zero2.traffic_bytes_per_step == (2 * 4 + 2) * 189_624_832 * 15 // 16
    assert (plan.nodes, plan.gpus_per_node, plan.device) == (2, 8, "a100-40g")
    assert zero2.fits
    assert (plan.samples_per_micro_batch, plan.micro_batches_per_step) == (4, 1)


def test_a_replica_that_does_not_fit_is_sharded():
    plan = make_plan(load_recipe("vicuna13b"), cluster("rtx3090"))
    assert [choice.fits for choice in plan.choices] == [False, False, True]
    assert plan.chosen == "zero3"
    # transformers 5 keeps a little more.
    assert re.search(r"zero2 needs 31\.[67] GiB, more than there are", plan.because)


def test_what_would_fit_is_said():
    recipe = load_recipe("vicuna13b", ["training.micro_batch=128", "training.global_batch=1024"])
    plan = make_plan(recipe, cluster("rtx3090"))
    assert plan.chosen == ""
    assert not any(choice.fits for choice in plan.choices)
    assert plan.because.startswith("no sharding fits: zero3 needs least, ")
    assert plan.because.endswith("with training.micro_batch=32 zero3 would")
    smaller = load_recipe("vicuna13b", ["training.micro_batch=32", "training.global_batch=1024"])
    assert make_plan(smaller, cluster("rtx3090")).chosen == "zero3"


def test_gradient_checkpointing_is_advised_before_smaller_batches():
    # The largest for which zero2 does under transformers 5 too, which keeps a little more.
    recipe = load_recipe(
        "vicuna13b",
        [
            "training.micro_batch=28",
            "training.global_batch=224",
            "model.gradient_checkpointing=false",
        ],
    )
    plan = make_plan(recipe, cluster("a100-40g"))
    assert plan.because.endswith(
        "with training.micro_batch=28 model.gradient_checkpointing=true zero2 and zero3 would"
    )


def test_weights_alone_are_too_much():
    """The host's memory is thought of where nothing else fits, and helps with weights alone."""
    alone = cluster("rtx3090", gpus_per_node=1)
    plan = make_plan(load_recipe("vicuna13b"), alone)
    assert plan.chosen == "zero3-offload"
    assert [choice.fits for choice in plan.choices] == [False, False, False, True]
    all_of_it = load_recipe("vicuna13b", ["model.train_parts.language=full"])
    assert "one sample at a time is too much too" in make_plan(all_of_it, alone).because


def test_recomputing_costs_time_and_no_mfu():
    """MFU counts what the model needs, once."""
    plain = make_plan(
        load_recipe("vicuna13b", ["model.gradient_checkpointing=false"]), cluster("h200")
    )
    again = make_plan(load_recipe("vicuna13b"), cluster("h200"))
    assert plain.flops_per_sample == again.flops_per_sample
    assert plain.choices[1].step_seconds < again.choices[1].step_seconds
    assert plain.choices[1].mfu > again.choices[1].mfu
    activations = [plan.choices[1].memory_bytes_per_gpu["activations"] for plan in (plain, again)]
    assert activations[0] > 4 * activations[1]


def test_kernels_off_computes_the_same_and_keeps_no_scores():
    """Attention is a library's then; transformers' own norms and activations keep more."""
    whole = ["model.gradient_checkpointing=false"]
    off = make_plan(load_recipe("vicuna13b", [*whole, "kernels=off"]), cluster("h200"))
    auto = make_plan(load_recipe("vicuna13b", whole), cluster("h200"))
    assert off.flops_per_sample == auto.flops_per_sample
    kept = [plan.choices[1].memory_bytes_per_gpu["activations"] for plan in (off, auto)]
    scores = 4 * 8 * 40 * (32 + 128 + 256) ** 2 * 40  # fp32, 8 samples, 40 heads, 40 layers
    assert kept[0] - kept[1] < scores


def test_mfu_is_arithmetic_over_time():
    plan = make_plan(load_recipe("vicuna7b"), cluster())
    for choice in plan.choices:
        per_gpu = plan.flops_per_sample * 16
        assert choice.mfu == pytest.approx(per_gpu / choice.step_seconds / 989.4e12)
        assert choice.samples_per_second == pytest.approx(128 / choice.step_seconds)
        assert 0.02 < choice.mfu < 0.63
    # A frozen base costs about 4 operations a parameter and token, a frozen tower 2.
    rough = 4 * 6.74e9 * (32 + 27 + 15) + 2 * 0.986e9 * 257
    assert plan.flops_per_sample == pytest.approx(rough, rel=0.1)


def test_longer_samples_take_longer_and_never_exceed_the_recipe():
    recipe = load_recipe("vicuna7b")
    usual = make_plan(recipe, cluster())
    longer = make_plan(recipe, cluster(), Lengths(100, 1_000))
    assert (longer.typical, longer.longest) == (Lengths(100, 257), Lengths(128, 257))
    # Short samples wait for the host.
    assert longer.choices[1].step_seconds > usual.choices[1].step_seconds
    assert longer.choices[1].mfu > 3 * usual.choices[1].mfu
    assert longer.choices[1].memory_bytes_per_gpu == usual.choices[1].memory_bytes_per_gpu


def test_a_slow_network_makes_gathering_dear():
    recipe = load_recipe("vicuna13b")
    fast = make_plan(recipe, cluster(nodes=2, network_rate=400 * GB))
    slow = make_plan(recipe, cluster(nodes=2, network_rate=10 * GB))
    gathered = slow.choices[2].gathered_bytes_per_micro_batch
    assert slow.choices[2].step_seconds > gathered / (10 * GB)
    assert fast.choices[2].step_seconds < slow.choices[2].step_seconds
    assert slow.chosen == fast.chosen == "zero2"


def test_accumulation_sends_once_under_zero1():
    """Two micro-batches: ZeRO-2 reduces after each, ZeRO-1 after the last."""
    plan = make_plan(load_recipe("vicuna7b", ["training.micro_batch=8"]), cluster())
    zero1, zero2, _ = plan.choices
    once = 2 * 4 * 188_837_376 * 7 // 8
    assert plan.micro_batches_per_step == 2
    assert zero2.traffic_bytes_per_step - zero1.traffic_bytes_per_step == once


def test_a_configuration_of_ones_own_is_planned_too(tmp_path):
    own = tmp_path / "own.json"
    own.write_text('{"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8}}')
    recipe = load_recipe("vicuna13b", [f"sharding={own}"])
    plan = make_plan(recipe, cluster(nodes=2, network_rate=5 * GB))
    zero3, _, hpz = plan.choices[2:]  # between them the shipped hpZ
    assert hpz.sharding == str(own)
    assert hpz.memory_bytes_per_gpu["weights"] > zero3.memory_bytes_per_gpu["weights"]
    assert hpz.step_seconds < 0.3 * zero3.step_seconds  # frozen weights do not leave the node


def test_the_memory_of_torch_is_left_as_it_was():
    """A 13B is built, run forward and backward, and nothing of it is ever stored."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    make_plan(load_recipe("vicuna13b"), cluster())
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 500_000_000
    assert torch.empty(1).device.type == "cpu"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"nodes": 0}, "nodes is 0; there must be at least 1"),
        ({"gpus_per_node": -1}, "gpus_per_node is -1"),
        ({"network_rate": 0.0}, "the network's rate is 0 GB/s; give a number above 0"),
        ({"network_rate": float("nan")}, "the network's rate is nan"),
    ],
)
def test_clusters_that_are_none(fault, message):
    with pytest.raises(ValueError, match=message):
        cluster(**fault)


def test_a_batch_that_does_not_divide():
    with pytest.raises(ValueError, match="does not divide among 24 ranks"):
        make_plan(load_recipe("vicuna13b"), cluster(nodes=3))


def test_a_base_that_is_not_there_and_of_no_known_name():
    recipe = load_recipe("vicuna7b", ["model.parts.language=elsewhere/llama"])
    with pytest.raises(ValueError, match=r"elsewhere/llama is not there, and the base's name"):
        make_plan(recipe, cluster())


def test_an_architecture_of_any_size():
    language = tiny_architecture()["language"] | {"model_type": "llama"}
    plan = make_plan(random_recipe(language), cluster("a40", gpus_per_node=1))
    assert plan.choices[0].traffic_bytes_per_step == 0


def choice(name: str, seconds: float, gib: float, gathered: float = 0, *, fits=True) -> Choice:
    return Choice(name, fits, {"total": int(gib * 2**30)}, seconds, 1.0, 0.1, 0, int(gathered * GB))


@pytest.mark.parametrize(
    ("choices", "chosen", "reason"),
    [
        (
            [choice("a", 1.0, 30), choice("b", 0.9, 40)],
            "b",
            "it needs 40.0 GiB of each GPU; a takes 11% longer",
        ),
        (
            [choice("a", 1.0, 30), choice("b", 1.01, 20)],
            "b",
            "it needs 20.0 GiB of each GPU; a is no faster and needs 10.0 GiB more",
        ),
        (
            [choice("a", 1.0, 30), choice("b", 1.0, 20, 52)],
            "a",
            "it needs 30.0 GiB of each GPU; b is no faster and gathers 52.0 GB of weights for "
            "each micro-batch",
        ),
        (
            [choice("a", 0.5, 90, fits=False), choice("b", 1.0, 20, 52)],
            "b",
            "it needs 20.0 GiB of each GPU; a needs 90.0 GiB, more than there are",
        ),
    ],
)
def test_the_choice_and_its_reason(choices, chosen, reason):
    found = choose(choices)
    assert found.sharding == chosen
    assert because(found, choices) == reason


def test_nothing_is_chosen_of_what_does_not_fit():
    assert choose([choice("a", 1.0, 30, fits=False)]) is None
