"""A DeepSpeed JSON of one's own: what it may say, and what is refused before a model is loaded."""

import json
import os
from pathlib import Path
from random import Random
from typing import Any

import pytest
from deepspeed.runtime.config import DeepSpeedConfig

from ibtrain.config import Recipe, RecipeError, load_recipe
from ibtrain.sharding import DS_CONFIGS, read_sharding
from ibtrain.training.engine import sharding_config
from tests.data.mutations import mutate

FUZZ = max(60, int(os.environ.get("IBTRAIN_FUZZ", "0")) // 4)
STAGE_2 = {"zero_optimization": {"stage": 2}}
FILLED = {  # of the toy recipe on two ranks
    "steps_per_print": 10**9,
    "wall_clock_breakdown": False,
    "train_micro_batch_size_per_gpu": 32,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 1.0,
    "bf16": {"enabled": False, "check_grad_overflow": False},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}
LLAVA = {  # the values of LLaVA's scripts/zero3.json
    "fp16": {
        "enabled": "auto",
        "loss_scale": 0,
        "loss_scale_window": 1000,
        "initial_scale_power": 16,
        "hysteresis": 2,
        "min_loss_scale": 1,
    },
    "bf16": {"enabled": "auto"},
    "train_micro_batch_size_per_gpu": "auto",
    "train_batch_size": "auto",
    "gradient_accumulation_steps": "auto",
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "own.json"


def recipe_with(own: Path, config: Any, *overrides: str) -> Recipe:
    own.write_text(json.dumps(config))
    return load_recipe("toy", [f"root={own.parent}", f"sharding={own}", *overrides])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_auto_is_the_recipes_value_or_the_shipped_one(own: Path, precision: str):
    recipe = recipe_with(own, LLAVA, f"model.precision={precision}")
    zero = LLAVA["zero_optimization"] | {
        "reduce_bucket_size": 50_000_000,
        "stage3_prefetch_bucket_size": 50_000_000,
        "stage3_param_persistence_threshold": 100_000,
    }
    bf16 = {"enabled": precision == "bf16", "check_grad_overflow": False}
    assert sharding_config(recipe, 2) == FILLED | {"zero_optimization": zero, "bf16": bf16}


@pytest.mark.parametrize("file", sorted(DS_CONFIGS.glob("*.json")), ids=lambda file: file.stem)
def test_deepspeed_takes_each_shipped_file_as_it_is(file: Path):
    whole = DeepSpeedConfig(json.loads(file.read_text()))
    assert whole.train_micro_batch_size_per_gpu == 1
    recipe = load_recipe("toy", [f"sharding={file.stem}"])
    ours = sharding_config(recipe, 2)
    assert ours["train_micro_batch_size_per_gpu"] == recipe.training.micro_batch == 32
    stage = int(file.stem[4])
    assert whole.zero_config.stage == ours["zero_optimization"]["stage"] == stage


def test_the_second_copy_is_spread_within_a_node():
    recipe = load_recipe("toy", ["sharding=zero3-hpz"])
    for gpus_per_node, expected in ((None, 8), (4, 4), (1, 1)):
        config = sharding_config(recipe, 8, gpus_per_node)
        assert config["zero_optimization"]["zero_hpz_partition_size"] == expected


def test_a_copy_says_no_micro_batch_of_its_own(own: Path):
    copied = json.loads((DS_CONFIGS / "zero3.json").read_text())
    with pytest.raises(RecipeError, match="train_micro_batch_size_per_gpu to 1, and the recipe"):
        sharding_config(recipe_with(own, copied), 2)


SAME = {
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": [0.9, 0.98], "eps": 1e-8, "weight_decay": 0.05},
    },
    "scheduler": {
        "type": "WarmupCosineLR",
        "params": {"total_num_steps": "auto", "warmup_num_steps": 60},
    },
    "train_batch_size": 64,
    "train_micro_batch_size_per_gpu": 32,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 1,
    "fp16": {"enabled": False},
    "amp": {"enabled": "auto"},
    "zero_allow_untested_optimizer": True,
}


@pytest.mark.parametrize("key", SAME)
def test_what_says_the_same_as_the_recipe_may_stand_there(own: Path, key: str):
    assert sharding_config(recipe_with(own, STAGE_2 | {key: SAME[key]}), 2) == FILLED | STAGE_2


def test_what_the_recipe_says_nothing_of_is_passed_on(own: Path):
    config = STAGE_2 | {
        "steps_per_print": 2000,
        "wall_clock_breakdown": True,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
    }
    assert sharding_config(recipe_with(own, config), 2) == FILLED | config


OFFLOADED = {"device": "cpu", "pin_memory": True}
FILLED_BF16 = FILLED | {"bf16": {"enabled": True, "check_grad_overflow": False}}
AUTO = dict.fromkeys(
    ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), "auto"
)


@pytest.mark.parametrize(
    ("config", "zero"),
    [
        pytest.param(  # with what DeepSpeed itself does not read
            AUTO
            | {
                "_comment": "which models are supported",
                "gradient_clipping": "auto",
                "zero_allow_untested_optimizer": True,
                "fp16": LLAVA["fp16"],
                "bf16": {"enabled": "auto"},
                "zero_optimization": LLAVA["zero_optimization"]
                | {"overlap_comm": False, "offload_param": OFFLOADED},
                "comms_config": {"verbose": False},
                "monitor_config": {"enabled": True, "csv_monitor": {"enabled": False}},
            },
            LLAVA["zero_optimization"]
            | {
                "overlap_comm": False,
                "offload_param": OFFLOADED,
                "reduce_bucket_size": 50_000_000,
                "stage3_prefetch_bucket_size": 50_000_000,
                "stage3_param_persistence_threshold": 100_000,
            },
            id="LLaMA-Factory ds_z3_offload_config.json",
        ),
        pytest.param(  # by the names of fields that have an alias
            {
                "zero_force_ds_cpu_optimizer": False,
                "zero_optimization": {
                    "stage": 3,
                    "offload_optimizer": OFFLOADED,
                    "sub_group_size": 0,
                    "max_live_parameters": 0,
                    "gather_16bit_weights_on_model_save": True,
                },
                "bf16": {"enabled": True},
            },
            {
                "stage": 3,
                "offload_optimizer": OFFLOADED,
                "sub_group_size": 0,
                "max_live_parameters": 0,
                "gather_16bit_weights_on_model_save": True,
            },
            id="axolotl zero3_bf16_cpuoffload_all.json",
        ),
        pytest.param(  # with neither of bf16 and a clipping
            AUTO
            | {
                "fp16": LLAVA["fp16"],
                "zero_optimization": {
                    "stage": 3,
                    "stage3_prefetch_bucket_size": 5e8,
                    "sub_group_size": 1e12,
                },
            },
            {"stage": 3, "stage3_prefetch_bucket_size": 5e8, "sub_group_size": 1e12},
            id="FastChat deepspeed_config_s3.json",
        ),
    ],
)
def test_files_of_other_trainers_are_read(own: Path, config: dict, zero: dict):
    recipe = recipe_with(own, config, "model.precision=bf16")
    assert sharding_config(recipe, 2) == FILLED_BF16 | {"zero_optimization": zero}


ZERO = "{file} sets zero_optimization.stage to {}; write the number 1, 2 or 3"
OTHERWISE = "{file} sets {} to {}, and the recipe determines it: {} ({}); remove it there"
ADAMW = "the optimizer is torch's AdamW"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            STAGE_2 | {"optimizer": {"type": "AdamW", "params": {"lr": 0.5}}},
            (OTHERWISE, "optimizer.params.lr", 0.5, 0.003, "training.learning_rate"),
        ),
        (
            STAGE_2 | {"optimizer": {"type": "Lion", "params": {"lr": "auto"}}},
            (OTHERWISE, "optimizer.type", '"Lion"', '"AdamW"', ADAMW),
        ),
        (
            STAGE_2 | {"scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": 0}}},
            (
                *(OTHERWISE, "scheduler.type", '"WarmupLR"', '"WarmupCosineLR"'),
                "a linear warm-up and a cosine decay",
            ),
        ),
        (
            STAGE_2 | {"train_batch_size": 65},
            (OTHERWISE, "train_batch_size", 65, 64, "training.global_batch"),
        ),
        (
            STAGE_2 | {"gradient_clipping": 0.5},
            (OTHERWISE, "gradient_clipping", 0.5, 1.0, "training.gradient_clip"),
        ),
        (
            STAGE_2 | {"fp16": {"enabled": True}},
            (OTHERWISE, "fp16.enabled", "true", "false", "model.precision"),
        ),
        (
            STAGE_2 | {"amp": {"enabled": True, "opt_level": "O1"}},
            (OTHERWISE, "amp.enabled", "true", "false", "model.precision"),
        ),
        (
            STAGE_2 | {"bf16": {"enabled": "true"}},
            (OTHERWISE, "bf16.enabled", '"true"', "false", "model.precision"),
        ),
        ({"zero_optimization": {"stage": "3"}}, (ZERO, '"3"')),
        ({"zero_optimization": {"stage": True}}, (ZERO, "true")),
        ({"zero_optimization": {"stage": 3.0}}, (ZERO, "3.0")),
        ({}, (ZERO, "0")),
        (
            {"zero_optimization": True},
            ("{file} sets zero_optimization to true; it is a JSON object",),
        ),
        (
            {"zero_optimization": {"stage": 2, "reduce_buket_size": 5}},
            (
                "{file} has a key that DeepSpeed does not know, "
                "'zero_optimization.reduce_buket_size'; did you mean 'reduce_bucket_size'?",
            ),
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"devise": "cpu"}}},
            (
                "{file} has a key that DeepSpeed does not know, "
                "'zero_optimization.offload_optimizer.devise'; did you mean 'device'?",
            ),
        ),
        (
            {"zero_optimization": {"stage": 3, "stage3_prefetch_bucket_size": 3774873.6}},
            (
                "{file} sets zero_optimization.stage3_prefetch_bucket_size to 3774873.6: Input "
                "should be a valid integer, got a number with a fractional part; correct it",
            ),
        ),
        (  # as in DeepSpeedExamples, Megatron-LM's ds_zero_stage_infinity_config.json
            {"zero_optimization": {"stage": 3, "stage3_param_persitance_threshold": 1e5}},
            (
                "{file} has a key that DeepSpeed does not know, "
                "'zero_optimization.stage3_param_persitance_threshold'; "
                "did you mean 'stage3_param_persistence_threshold'?",
            ),
        ),
        (
            STAGE_2 | {"fp8": {"enabled": True}},  # LLaMA-Factory's ds_z3_fp8_config.json
            (
                "{file} sets 'fp8', which is not used here; remove it, and set model.precision in "
                "the recipe",
            ),
        ),
        (
            STAGE_2 | {"gradient_cliping": 1},
            (
                "{file} sets 'gradient_cliping', which is not known here; "
                "did you mean 'gradient_clipping'?",
            ),
        ),
        (
            STAGE_2 | {"tensor_parallel": {"autotp_size": 2}},
            ("{file} sets 'tensor_parallel', which is not known here; remove it",),
        ),
        (
            STAGE_2 | {"steps_per_print": 3.5},
            ("{file} sets steps_per_print to 3.5; it is a whole number",),
        ),
        (
            STAGE_2 | {"data_types": {"grad_accum_dtype": "fp33"}},
            (
                '{file} sets data_types.grad_accum_dtype to "fp33"; what may stand there is '
                "grad_accum_dtype, one of fp32, fp16, bf16",
            ),
        ),
    ],
)
def test_what_is_refused(own: Path, config: dict[str, Any], expected: tuple[Any, ...]):
    with pytest.raises(RecipeError) as refused:
        sharding_config(recipe_with(own, config), 2)
    assert str(refused.value) == expected[0].format(*expected[1:], file=own)


def test_a_pointer_of_git_lfs(own: Path):
    """As a public copy of LLaVA's scripts/zero2.json is one."""
    own.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:bb7d\nsize 556\n")
    with pytest.raises(RecipeError, match=r"own.json is a pointer of Git LFS \(\d+ bytes\), not"):
        read_sharding(str(own))


def test_a_key_twice_and_no_json(own: Path):
    for text, said in (
        ('{"zero_optimization": {"stage": 2, "stage": 3}}', "the key 'stage' stands twice"),
        ("[" * 100_000, "maximum recursion depth"),
        (" " * (1 << 21), "more than 1048576 bytes"),
    ):
        own.write_text(text)
        with pytest.raises(RecipeError, match=f"own.json cannot be read as JSON .{said}"):
            read_sharding(str(own))


def test_damaged_files_end_in_one_sentence(own: Path):
    """A changing seed; a failure shows it as the last that was printed."""
    start = Random().randrange(10**9)
    recipe = recipe_with(own, STAGE_2)
    whole = LLAVA | SAME | {"data_types": {"grad_accum_dtype": "fp32"}, "aio": {"block_size": 1}}
    outcomes = set()
    for seed in range(start, start + FUZZ):
        mutation = mutate(json.dumps(whole).encode(), ".json", Random(seed))
        own.write_bytes(mutation.data)
        print(seed, mutation.done)
        try:
            sharding_config(recipe, 2)
            outcomes.add("read")
        except RecipeError as error:
            assert str(own) in str(error) and "\n" not in str(error), (seed, mutation.done)
            outcomes.add("refused")
    assert "refused" in outcomes
