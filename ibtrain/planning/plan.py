"""The plan of a run: memory, time, MFU and traffic of each sharding choice, and the one to take."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ibtrain.config import Recipe, micro_batches_per_step
from ibtrain.planning.devices import Device
from ibtrain.planning.dry_run import DryRun, Lengths, Operation, build, dry_run
from ibtrain.planning.memory import Counts, Sharding
from ibtrain.pretrained.base import config_or_published
from ibtrain.sharding import AUTO, read_sharding

SHARDINGS = ("zero1", "zero2", "zero3")
BETWEEN_NODES, OFFLOADED = "zero3-hpz", "zero3-offload"
TYPICAL = Lengths(instruction=27, answer=16)
"""A sample of the 13 held-in datasets drawn by the square root of their sizes comes to about 75
tokens with its 32 visual ones (calculated from the datasets' published lengths)."""
MATRIX_SHARE = 0.63
"""Of the peak rate, what large products of matrices reach: 620 of an H200's 989 TFLOP/s. On an H100
(docs/benchmarks/2026-11-27-h100-80gb-hbm3.md, "the report" below) a step's kernels took 1.1 times
what is planned with these shares, and one large product reached 719."""
ATTENTION_SHARE = 0.25
"""The same of attention; FlashAttention 2 at head width 128 has published rates of 191 (causal) to
309 TFLOP/s of 989."""
MEMORY_SHARE = 0.8
LINK_SHARE = 0.8
KERNEL_SECONDS = 2e-6
"""The least that a launch takes on the device."""
LAUNCH_SECONDS = 9e-5
"""What the host needs for each operator of a micro-batch, DeepSpeed's handling of gradients
included: 208 ms for 2,585 of a 7B, 281 ms for 2,825 of a 13B (the report; a virtual machine, whose
host needed 8 to 10 us to start a kernel)."""
RECOMPUTED_SECONDS = 4.5e-4
"""What the host needs for each call of a module that is computed again, beside its operators: 143
ms more for 256 calls and 352 operators at 7B, 176 for 320 and 440 at 13B (the report)."""
HOOK_SECONDS = 7e-4
"""What DeepSpeed 0.19.8 needs on the host, under ZeRO-3, around each pass of a module that has
parameters: 1,398 ms a micro-batch of a 7B instead of 351, over 1,409 passes (the report)."""
_UPDATE_BYTES = 30
"""Read and written by AdamW for each trained parameter: gradient, weight and both moments in fp32,
then the weight in bf16."""
_SINGLE = 4
_NEAR = 1.02
"""Choices within 2 % of the fastest count as fast."""


@dataclass(frozen=True)
class Cluster:
    """The GPUs of a run.

    Raises:
        ValueError: when there are none.
    """

    nodes: int
    gpus_per_node: int
    device: Device
    network_rate: float | None = None
    """Bytes a second into one node, all its adapters together; default: as usual for the device."""

    def __post_init__(self) -> None:
        for name in ("nodes", "gpus_per_node"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; there must be at least 1")
        if self.network_rate is not None and not 0 < self.network_rate < math.inf:
            raise ValueError(
                f"the network's rate is {self.network_rate / 1e9:g} GB/s; give a number above 0"
            )

    @property
    def world(self) -> int:
        """GPUs of all nodes."""
        return self.nodes * self.gpus_per_node

    def seconds(self, received: int, *, within_node: bool = False) -> float:
        """Seconds in which every GPU receives so many bytes from all others, by rings.

        Between nodes a ring enters each node once, through all its adapters together.
        """
        rate = self.device.link_rate
        if self.nodes > 1 and not within_node:
            usual = self.device.network_rate * self.gpus_per_node
            rate = min(rate, usual if self.network_rate is None else self.network_rate)
        return received / (LINK_SHARE * rate)


@dataclass(frozen=True)
class Choice:
    """One sharding of the run."""

    sharding: str
    fits: bool
    memory_bytes_per_gpu: dict[str, int]
    step_seconds: float
    samples_per_second: float
    mfu: float
    traffic_bytes_per_step: int
    """Received by each GPU."""
    gathered_bytes_per_micro_batch: int
    """Weights among it."""


@dataclass(frozen=True)
class Plan:
    """All choices, and which to take."""

    recipe: str
    architecture: str
    """Where the model's shapes are from."""
    device: str
    memory_bytes: int
    nodes: int
    gpus_per_node: int
    samples_per_micro_batch: int
    micro_batches_per_step: int
    longest: Lengths
    typical: Lengths
    visual_tokens: int
    parameters: int
    trained_parameters: int
    flops_per_sample: int
    """Of the model itself, forward and backward, without what is computed again."""
    choices: tuple[Choice, ...]
    chosen: str
    """A sharding's name, or nothing when none fits."""
    because: str


def make_plan(recipe: Recipe, cluster: Cluster, typical: Lengths = TYPICAL) -> Plan:
    """Plans a recipe for a cluster.

    Memory is that of a micro-batch whose samples are all as long as the recipe allows, for one
    batch too large ends a run; time is that of typical ones.

    Args:
        recipe: the run.
        cluster: its GPUs.
        typical: the mean tokens of a sample.

    Raises:
        ValueError: when the recipe does not fit the cluster, or its model cannot be told.
    """
    plan = _Planner(recipe, cluster, typical).plan()
    if plan.chosen:
        return plan
    # What the host's memory holds is fetched for every use: only where nothing else fits.
    offloaded = _Planner(recipe, cluster, typical, (OFFLOADED,)).plan()
    return offloaded if offloaded.chosen else plan


class _Planner:
    """A recipe on a cluster, with the model that dry runs take."""

    def __init__(
        self, recipe: Recipe, cluster: Cluster, typical: Lengths, more: Sequence[str] = ()
    ) -> None:
        self.recipe, self.cluster = recipe, cluster
        self.micro_batches = micro_batches_per_step(recipe, cluster.world)
        self.share = recipe.training.global_batch // cluster.world
        self.micro_batch = min(recipe.training.micro_batch, self.share)
        names = [*SHARDINGS]
        if cluster.nodes > 1 and cluster.gpus_per_node > 1:
            names.append(BETWEEN_NODES)
        if recipe.sharding != AUTO:
            names.append(recipe.sharding)
        self.shardings = [
            Sharding.of(name, read_sharding(name, cluster.gpus_per_node), cluster.world)
            for name in dict.fromkeys([*names, *more])
        ]
        self.longest = Lengths(
            recipe.data.max_instruction_tokens, recipe.data.max_answer_tokens + 1
        )
        self.typical = Lengths(
            min(typical.instruction, self.longest.instruction),
            min(typical.answer, self.longest.answer),
        )
        self.config, self.architecture = config_or_published(recipe.model)
        self.recompute = recipe.model.gradient_checkpointing
        self.model = build(self.config, recipe.model, recipe.kernels == "auto")
        self.counts = Counts.of(self.model, recipe.model.precision)

    def plan(self) -> Plan:
        # A step's micro-batches need not be equally full: their mean is what a step takes.
        samples = max(1, round(self.share / self.micro_batches))
        once = self._dry_run(samples, self.typical, recompute=False)
        usual = self._dry_run(samples, self.typical) if self.recompute else once
        flops = once.flops // samples
        memories = self._memories(self.micro_batch)
        passes = usual.module_calls + once.module_calls_with_gradient
        again = usual.module_calls - once.module_calls
        filled = self.share / (samples * self.micro_batches)
        choices = [
            self._choice(
                sharding, memory, filled * self._computing(sharding, usual, passes, again), flops
            )
            for sharding, memory in zip(self.shardings, memories, strict=True)
        ]
        chosen = choose(choices)
        return Plan(
            recipe=self.recipe.name,
            architecture=self.architecture,
            device=self.cluster.device.name,
            memory_bytes=self.cluster.device.memory,
            nodes=self.cluster.nodes,
            gpus_per_node=self.cluster.gpus_per_node,
            samples_per_micro_batch=self.micro_batch,
            micro_batches_per_step=self.micro_batches,
            longest=self.longest,
            typical=self.typical,
            visual_tokens=self.config.num_query_tokens,
            parameters=self.counts.total,
            trained_parameters=self.counts.trained,
            flops_per_sample=flops,
            choices=tuple(choices),
            chosen="" if chosen is None else chosen.sharding,
            because=self._advice(choices) if chosen is None else because(chosen, choices),
        )

    def _dry_run(
        self,
        samples: int,
        lengths: Lengths,
        *,
        recompute: bool | None = None,
        keeps_inputs: bool = False,
    ) -> DryRun:
        return dry_run(
            self.model,
            samples,
            lengths,
            recompute=self.recompute if recompute is None else recompute,
            keeps_inputs=keeps_inputs,
        )

    def _memories(self, micro_batch: int, recompute: bool | None = None) -> list[dict[str, int]]:
        """Bytes per GPU of each sharding, when every sample is as long as it may be."""
        peaks = {
            keeps: self._dry_run(
                micro_batch, self.longest, recompute=recompute, keeps_inputs=keeps
            ).peak_bytes
            for keeps in {sharding.keeps_inputs for sharding in self.shardings}
        }
        return [
            sharding.memory(self.counts, self.cluster.world, peaks[sharding.keeps_inputs])
            for sharding in self.shardings
        ]

    def _computing(self, sharding: Sharding, run: DryRun, passes: int, again: int) -> float:
        """Seconds of a micro-batch without communication: the device's or, where that is slower,
        the host's, which runs ahead of it.

        A launch takes as long as its arithmetic or its memory traffic, whichever is longer.

        Args:
            sharding: the choice.
            run: of a typical micro-batch.
            passes: of modules with parameters, forward, again and backward.
            again: calls of such modules that are a recomputation.
        """
        device, precision = self.cluster.device, self.recipe.model.precision
        host = LAUNCH_SECONDS * len(run.operations) + RECOMPUTED_SECONDS * again
        if sharding.stage == 3:
            host += HOOK_SECONDS * passes
        working = sum(
            max(
                operation.flops / (_share(operation) * device.rate(precision)),
                operation.bytes / (MEMORY_SHARE * device.memory_rate),
                KERNEL_SECONDS,
            )
            for operation in run.operations
        )
        return max(working, host)

    def _choice(
        self, sharding: Sharding, memory: dict[str, int], computing: float, flops: int
    ) -> Choice:
        """One sharding, given the seconds that a micro-batch computes."""
        counts, cluster, world = self.counts, self.cluster, self.cluster.world
        far, near = sharding.gathered_bytes(counts, world)
        reduced = sharding.reduced_bytes(counts, world)
        updated = sharding.updated_bytes(counts, world)
        reductions = sharding.reductions(self.micro_batches)
        within_node = 1 < sharding.secondary <= cluster.gpus_per_node
        gathering = cluster.seconds(far) + cluster.seconds(near, within_node=within_node)
        sending = self.micro_batches * gathering + reductions * cluster.seconds(reduced)
        computing *= self.micro_batches
        step = max(computing, sending) if sharding.overlaps else computing + sending
        step += cluster.seconds(updated) + self._updating(sharding)
        samples = self.recipe.training.global_batch
        rate = cluster.device.rate(self.recipe.model.precision)
        return Choice(
            sharding=sharding.name,
            fits=memory["total"] <= cluster.device.memory,
            memory_bytes_per_gpu=memory,
            step_seconds=step,
            samples_per_second=samples / step,
            mfu=flops * self.share / (step * rate),
            traffic_bytes_per_step=(
                self.micro_batches * (far + near) + reductions * reduced + updated
            ),
            gathered_bytes_per_micro_batch=far + near,
        )

    def _updating(self, sharding: Sharding) -> float:
        """Seconds of the optimizer's step, and of moving what lies on the host."""
        device, share = self.cluster.device, self.counts.trained / self.cluster.world
        moved = 0.0
        if sharding.weights_on_host:
            passes = 2 * self.micro_batches
            moved += passes * self.counts.bytes_each * self.counts.total / self.cluster.world
        if sharding.optimizer_on_host:
            moved += 2 * _SINGLE * share
        rate = MEMORY_SHARE * (
            device.host_rate if sharding.optimizer_on_host else device.memory_rate
        )
        return _UPDATE_BYTES * share / rate + moved / (LINK_SHARE * device.host_rate)

    def _advice(self, choices: Sequence[Choice]) -> str:
        """Why nothing fits, and what would."""
        memory = self.cluster.device.memory
        least = min(choices, key=_needs)
        found = (
            f"no sharding fits: {least.sharding} needs least, {_gib(_needs(least))} of "
            f"{_gib(memory)} GiB"
        )
        for micro_batch, recompute in self._smaller():
            needs = self._memories(micro_batch, recompute)
            fitting = [
                sharding.name
                for sharding, need in zip(self.shardings, needs, strict=True)
                if need["total"] <= memory
            ]
            if fitting:
                keys = f"training.micro_batch={micro_batch}"
                if recompute != self.recompute:
                    keys += " model.gradient_checkpointing=true"
                return f"{found}; with {keys} {' and '.join(fitting)} would"
        return f"{found}, and one sample at a time is too much too: take larger GPUs, or more"

    def _smaller(self) -> list[tuple[int, bool]]:
        """Micro-batches and gradient checkpointing that need less, the next best first."""
        halves = [self.micro_batch >> shift for shift in range(self.micro_batch.bit_length())]
        if self.recompute:
            return [(micro_batch, True) for micro_batch in halves[1:]]
        return [(micro_batch, True) for micro_batch in halves]


def _share(operation: Operation) -> float:
    return ATTENTION_SHARE if operation.is_attention else MATRIX_SHARE


def choose(choices: Sequence[Choice]) -> Choice | None:
    """Of the choices that fit the fastest; of equally fast ones that which gathers least, and then
    that which needs least memory.
    """
    fitting = [choice for choice in choices if choice.fits]
    if not fitting:
        return None
    fastest = min(choice.step_seconds for choice in fitting)
    return min(
        (choice for choice in fitting if choice.step_seconds <= _NEAR * fastest),
        key=lambda choice: (choice.gathered_bytes_per_micro_batch, _needs(choice)),
    )


def because(chosen: Choice, choices: Sequence[Choice]) -> str:
    """Why `chosen` is, in a sentence."""
    reasons = []
    for other in choices:
        if other is chosen:
            continue
        if not other.fits:
            reasons.append(f"{other.sharding} needs {_gib(_needs(other))} GiB, more than there are")
            continue
        slower = other.step_seconds / chosen.step_seconds
        speed = f"takes {slower - 1:.0%} longer" if slower > _NEAR else "is no faster"
        gathered = other.gathered_bytes_per_micro_batch
        if gathered > chosen.gathered_bytes_per_micro_batch:
            speed += f" and gathers {gathered / 1e9:.1f} GB of weights for each micro-batch"
        elif slower <= _NEAR:
            speed += f" and needs {_gib(_needs(other) - _needs(chosen))} GiB more"
        reasons.append(f"{other.sharding} {speed}")
    return "; ".join([f"it needs {_gib(_needs(chosen))} GiB of each GPU", *reasons])


def _needs(choice: Choice) -> int:
    return choice.memory_bytes_per_gpu["total"]


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f}"
