"""DeepSpeed as the engine: sharded construction, one optimizer step.

Only this file and checkpoint.py know DeepSpeed.
"""

import contextlib
import copy
import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn
from transformers import InstructBlipConfig

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
import deepspeed
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.zero import GatheredParameters
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from ibtrain.batch import Batch
from ibtrain.config import Recipe, RecipeError
from ibtrain.distributed.ranks import Ranks
from ibtrain.kernels import allow_triton
from ibtrain.model.instructblip import InstructBlip, set_trainable
from ibtrain.model.language import restore_frequencies
from ibtrain.pretrained.tensors import TensorSource
from ibtrain.sharding import DETERMINED, determined, read_sharding, sharding_file
from ibtrain.training.loading import fill_partitions, fill_replicas, memory_given_back

if not torch.cuda.is_available():
    # It would compile an all-reduce for inference, which training never calls. That costs a minute,
    # a compiler and 66 MB of /dev/shm per rank that nobody removes, and a kill during it leaves a
    # lock file at which every later start waits for ever.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

_REFUSALS = (AssertionError, AttributeError, LookupError, TypeError, ValueError, ArithmeticError)
"""What DeepSpeed raises of a configuration that it does not like."""
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def sharding_config(recipe: Recipe, world: int, gpus_per_node: int | None = None) -> dict[str, Any]:
    """The DeepSpeed configuration: the chosen file, with what the recipe determines filled in.

    Args:
        recipe: the run.
        world: how many ranks there are.
        gpus_per_node: see `read_sharding`.

    Raises:
        RecipeError: when the file is missing, sets what the recipe determines otherwise, or holds
            what cannot be used, or when the global batch does not divide among the ranks.
    """
    config = read_sharding(recipe.sharding, gpus_per_node)
    filled = determined(config, recipe, world)
    passed_on = {key: value for key, value in config.items() if key not in DETERMINED}
    quiet = {"steps_per_print": 10**9, "wall_clock_breakdown": False}
    whole = quiet | passed_on | filled
    _check_as_deepspeed(whole, sharding_file(recipe.sharding))
    return whole


def _check_as_deepspeed(config: dict[str, Any], path: Path) -> None:
    """Has DeepSpeed read a configuration before anything is loaded.

    Raises:
        RecipeError: with the first of the keys that it refuses.
    """
    try:
        DeepSpeedConfig(copy.deepcopy(config))
    except ValidationError as error:
        fault = error.errors()[0]
        above = "zero_optimization." if error.title == DeepSpeedZeroConfig.__name__ else ""
        key = above + ".".join(str(name) for name in fault["loc"])
        if fault["type"] == "extra_forbidden":
            names = _names_in(DeepSpeedZeroConfig)
            near = difflib.get_close_matches(str(fault["loc"][-1]), names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "remove it"
            said = f"has a key that DeepSpeed does not know, {key!r}; {hint}"
        else:
            said = f"sets {key} to {str(fault['input'])[:80]}: {fault['msg']}; correct it"
        raise RecipeError(f"{path} {said}") from error
    except _REFUSALS as error:
        said = " ".join(str(error).split())[:200]
        raise RecipeError(f"{path} is refused by DeepSpeed: {said}; correct it") from error


def _names_in(model: type[BaseModel]) -> list[str]:
    """Keys of a section of DeepSpeed's, and of the sections within it."""
    names = [field.alias or name for name, field in model.model_fields.items()]
    for field in model.model_fields.values():
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                names += _names_in(inner)
    return names


def load_model(
    recipe: Recipe,
    ranks: Ranks,
    ds_config: dict[str, Any],
    config: InstructBlipConfig,
    sources: Mapping[str, TensorSource],
    device: torch.device,
) -> InstructBlip:
    """The model with its values: partitioned under ZeRO-3, else whole on every rank's device.

    Under ZeRO-3 a rank holds its own partition and one whole tensor at a time.

    Args:
        recipe: the run.
        ranks: this process among all.
        ds_config: see `sharding_config`.
        config: of the model.
        sources: for each parameter where its value is read from.
        device: where a whole model is put.
    """
    dtype, partitioned = DTYPES[recipe.model.precision], _stage(ds_config) == 3
    allow_triton(recipe.kernels == "auto")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_no_weight_initialization())
        if partitioned:
            stack.enter_context(memory_given_back())
            # The dtype comes from the configuration: DeepSpeed 0.19 ignores one passed to Init on
            # accelerators without fp16 (a CPU) and silently builds in bf16.
            stack.enter_context(deepspeed.zero.Init(config_dict_or_path=ds_config))
        else:
            # At once where it stays and in its dtype: no second copy, in fp32, on the host.
            stack.enter_context(device)
            stack.enter_context(_default_dtype(dtype))
        model = InstructBlip(
            config,
            recipe.model.instruction_aware,
            recipe.model.lora,
            recipe.model.gradient_checkpointing,
            kernels=recipe.kernels == "auto",
        )
    if not partitioned:
        model.to(dtype)  # what is built in fp32 whatever the default is
    assert all(parameter.dtype == dtype for parameter in model.parameters())
    if partitioned:
        with memory_given_back():
            fill_partitions(
                model, sources, ranks, lambda p: GatheredParameters([p], modifier_rank=0)
            )
    else:
        fill_replicas(model, sources, ranks)
    return model


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _stage(ds_config: Mapping[str, Any]) -> int:
    """The ZeRO stage of a configuration; 0 when it names none."""
    stage: int = ds_config.get("zero_optimization", {}).get("stage", 0)
    return stage


class Engine:
    """The sharded model, its optimizer, and one step of training.

    Args:
        recipe: the run.
        ranks: this process among all.
        config: of the model.
        sources: for each parameter where its value is read from.
    """

    def __init__(
        self,
        recipe: Recipe,
        ranks: Ranks,
        config: InstructBlipConfig,
        sources: Mapping[str, TensorSource],
    ) -> None:
        self.ranks = ranks
        self.device = (
            torch.device("cuda", ranks.local_rank)
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
        ds_config = sharding_config(recipe, ranks.world, ranks.local_world)
        self.stage = _stage(ds_config)
        model = load_model(recipe, ranks, ds_config, config, sources, self.device)
        set_trainable(model, recipe.model.train_parts.model_dump())
        model.train()
        self.model = model
        self._optimizer = torch.optim.AdamW(
            _decay_groups(model, recipe.training.weight_decay),
            lr=recipe.training.learning_rate,
            betas=recipe.training.betas,
            fused=torch.cuda.is_available(),
        )
        self.engine, self.zero, *_ = deepspeed.initialize(
            model=model, optimizer=self._optimizer, config=ds_config, dist_init_required=False
        )
        if hasattr(self.zero, "get_grad_norm_direct"):
            self.zero.get_grad_norm_direct = _gradient_norm
        restore_frequencies(model.language_model)
        self._create_moments()

    def step(
        self, micro_batches: Sequence[Batch], answer_tokens: int, rate: float, update: int
    ) -> tuple[list[Tensor], float]:
        """One optimizer step over this rank's micro-batches.

        The loss is the sum of cross-entropies over the answer tokens divided by `answer_tokens`,
        the number in the whole global batch, so the gradient is the same for any split.

        Args:
            micro_batches: this rank's share; as many on every rank.
            answer_tokens: answer tokens of all ranks and micro-batches of this step.
            rate: the learning rate.
            update: how many updates came before (Adam's bias correction).

        Returns:
            Per micro-batch the token losses [A], and the global gradient norm before clipping.
        """
        for group in self.zero.param_groups:
            group["lr"] = rate
        for state in self._moments():
            state["step"].fill_(update)
        losses = []
        for batch in micro_batches:
            token_losses_A = self.engine(batch.to(self.device))
            # DeepSpeed averages over ranks; the sum over ranks is wanted.
            loss = token_losses_A.sum() * (self.ranks.world / answer_tokens)
            self.engine.backward(loss, scale_wrt_gas=False)
            self.engine.step()
            losses.append(token_losses_A.detach())
        return losses, float(self.engine.get_global_grad_norm())

    def _create_moments(self) -> None:
        """Adam's state exists from the start, so that a checkpoint can be put into it.

        DeepSpeed leaves it to the optimizer's first step. Under ZeRO-3 the optimizer's groups are
        empty but during a step; the flat partitions that its state belongs to are named apart.
        """
        partitions: list[Tensor] = (
            self.zero.fp32_partitioned_groups_flat
            if self.stage == 3
            else [tensor for group in self._optimizer.param_groups for tensor in group["params"]]
        )
        for partition in partitions:
            self._optimizer.state[partition] = {
                "step": torch.zeros((), dtype=torch.float32, device=self.device),
                "exp_avg": torch.zeros_like(partition),
                "exp_avg_sq": torch.zeros_like(partition),
            }
        if self.stage != 3:
            self.zero._lazy_init_hp_params_optimizer_state()

    def _moments(self) -> Iterator[dict[str, Tensor]]:
        return iter(self._optimizer.state.values())


def _gradient_norm(gradients: Sequence[Tensor], _: Any, norm_type: float = 2) -> Tensor:
    """The norm of all ranks' parts of a group's gradients, -1 where it is not finite.

    Instead of DeepSpeed's, which makes an fp64 copy of one gradient after the other: a
    thousand launches in a 7B's step.
    """
    assert norm_type == 2
    squared = torch.nn.utils.get_total_norm([each.detach() for each in gradients]).square()
    torch.distributed.all_reduce(squared)
    return torch.where(squared.isfinite(), squared.sqrt(), -1.0)


def _decay_groups(model: InstructBlip, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices only (LAVIS: none on 1-D parameters and biases)."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.trainable():
        shape = getattr(parameter, "ds_shape", parameter.shape)
        (plain if len(shape) < 2 or name.endswith(".bias") else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _no_weight_initialization() -> Any:
    """transformers' switch against initialising weights, which fails on partitioned tensors."""
    try:
        from transformers.initialization import no_init_weights  # transformers 5
    except ImportError:
        from transformers.modeling_utils import no_init_weights
    return no_init_weights()
