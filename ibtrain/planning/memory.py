"""What a sharding choice holds on each GPU and sends between them, by its DeepSpeed configuration.

The figures of DeepSpeed's buffers are those of 0.19.8 (`runtime/zero/stage_1_and_2.py`,
`stage3.py`, and `runtime/bf16_optimizer.py` for ZeRO-1 in bf16 with gradients in fp32): what each
stage keeps, in which dtype, how large.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ibtrain.model.instructblip import InstructBlip
from ibtrain.planning.dry_run import DTYPES

RESERVE = 1_600_000_000
"""Bytes outside torch's tensors: CUDA's context, NCCL's buffers, cuBLAS's workspaces."""
FRAGMENTATION = 0.15
"""Of the activations: lengths differ from batch to batch, and freed blocks do not fit the next. An
H100 with memory to spare held more (docs/benchmarks/2026-11-27-h100-80gb-hbm3.md): 9 GiB beyond the
tensors and the context beside a 13B's 32 GiB of activations. Torch gives cached blocks back before
it fails, so that not all of it is needed."""
_SINGLE = 4
_ADAM = 12
"""Bytes for each trained parameter: fp32 weight and both moments."""
_WHOLE_BUCKET = 500_000_000
"""Elements that DeepSpeed's bf16 optimizer sends at once (`MEMORY_OPT_ALLREDUCE_SIZE`)."""


@dataclass(frozen=True)
class Counts:
    """Parameters of a model."""

    total: int
    trained: int
    sizes: tuple[int, ...]
    """Of every tensor, to tell which stay whole under ZeRO-3."""
    trained_backward: int
    """Parameters of the modules that a backward runs through: they are gathered for it too."""
    bytes_each: int

    @classmethod
    def of(cls, model: InstructBlip, precision: str) -> "Counts":
        """Of a model that `set_trainable` has gone over."""
        parameters = dict(model.named_parameters())
        frozen_tower = not any(one.requires_grad for one in model.vision_model.encoder.parameters())
        return cls(
            total=sum(one.numel() for one in parameters.values()),
            trained=sum(one.numel() for one in parameters.values() if one.requires_grad),
            sizes=tuple(one.numel() for one in parameters.values()),
            trained_backward=sum(
                one.numel()
                for name, one in parameters.items()
                if not (frozen_tower and name.startswith("vision_model.e"))
            ),
            bytes_each=DTYPES[precision].itemsize,
        )


@dataclass(frozen=True)
class Sharding:
    """One DeepSpeed configuration, as far as memory and traffic depend on it."""

    name: str
    stage: int
    overlaps: bool
    contiguous: bool
    bucket: int
    """Elements of a bucket of gradients."""
    live: int
    """Elements of gathered weights that may lie whole at once (ZeRO-3)."""
    persistent: int
    """Tensors of no more elements stay whole (ZeRO-3)."""
    secondary: int
    """GPUs among which a second copy of the weights is spread (hpZ); 1 for none."""
    sends_single: bool
    """Whether gradients are sent in fp32; else in the model's dtype."""
    keeps_inputs: bool
    """Whether linear layers run through DeepSpeed's own function, which keeps every input."""
    accumulates_single: bool
    """Whether gradients are added up in fp32."""
    weights_on_host: bool
    optimizer_on_host: bool

    @classmethod
    def of(cls, name: str, config: Mapping[str, Any], world: int) -> "Sharding":
        """What a configuration asks for; keys left out, and those that say "auto", have DeepSpeed's
        defaults.

        Raises:
            ValueError: when its ZeRO stage is none of 1, 2 and 3, a value is none that DeepSpeed
                takes, or weights are quantised.
        """
        zero = _mapping(config, "zero_optimization", name)
        stage = zero.get("stage", 0)
        if stage not in (1, 2, 3):
            raise ValueError(f"sharding {name!r} has ZeRO stage {stage!r}; use 1, 2 or 3")
        quantised = sorted(key for key in zero if key.startswith("zero_quantized") and zero[key])
        if quantised:
            raise ValueError(
                f"sharding {name!r} sets {quantised[0]}, whose memory is not known here; plan it "
                "without"
            )

        def number(key: str, default: float) -> int:
            value = zero.get(key, default)
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(
                    f"sharding {name!r} sets {key} to {value!r}; give a number from 0 on"
                )
            return int(value)

        overlaps = zero.get("overlap_comm")
        accumulated = _mapping(config, "data_types", name).get("grad_accum_dtype")
        return cls(
            name=name,
            stage=stage,
            overlaps=stage == 3 if overlaps is None else overlaps,
            contiguous=zero.get("contiguous_gradients", True),
            bucket=number("reduce_bucket_size", 5e8),
            live=number("stage3_max_live_parameters", 1e9)
            + number("stage3_prefetch_bucket_size", 5e7),
            persistent=number("stage3_param_persistence_threshold", 1e5),
            secondary=min(world, max(1, number("zero_hpz_partition_size", 1))),
            sends_single=config.get("communication_data_type") == "fp32",
            keeps_inputs=stage == 3 and zero.get("memory_efficient_linear", True),
            accumulates_single=accumulated in ("fp32", "float32"),
            weights_on_host=stage == 3 and _on_host(zero.get("offload_param")),
            optimizer_on_host=_on_host(zero.get("offload_optimizer")),
        )

    def memory(
        self, counts: Counts, world: int, activations: int, *, optimizer: int = _ADAM
    ) -> dict[str, int]:
        """Bytes on each GPU, by what they are for, and `total`.

        Args:
            counts: of the model.
            world: GPUs.
            activations: the peak of a dry run.
            optimizer: bytes of each trained parameter's master weight and moments.
        """
        share = -(-counts.trained // world)
        parts = {
            "weights": self._weights(counts, world),
            "gathered": self._gathered(counts),
            "gradients": self._gradients(counts, share),
            "optimizer": 0 if self.optimizer_on_host else optimizer * share,
            "activations": activations,
            "buckets": self._buckets(counts, activations),
            "reserve": RESERVE + int(FRAGMENTATION * activations),
        }
        return {"total": sum(parts.values()), **parts}

    def _whole(self, counts: Counts) -> int:
        """Elements of the tensors that stay whole under ZeRO-3."""
        return sum(size for size in counts.sizes if size <= self.persistent)

    def _weights(self, counts: Counts, world: int) -> int:
        if self.stage < 3:
            return counts.bytes_each * counts.total
        whole = self._whole(counts)
        spread = counts.total - whole
        held = whole if self.weights_on_host else whole + -(-spread // world)
        if self.secondary > 1:
            held += -(-spread // self.secondary)
        return counts.bytes_each * held

    def _gathered(self, counts: Counts) -> int:
        if self.stage < 3:
            return 0
        return counts.bytes_each * min(counts.total - self._whole(counts), self.live)

    def _gradients(self, counts: Counts, share: int) -> int:
        """Of whole steps. Under ZeRO-2 and 3 a GPU has its partition alone. Under ZeRO-1 it adds
        every gradient up: by the bf16 optimizer in fp32, beside the model's own in bf16; otherwise
        in one dtype, and its partition is taken out at the end.
        """
        each = _SINGLE if self.accumulates_single else counts.bytes_each
        if self.stage > 1:
            return each * share
        if self._uses_bf16_optimizer(counts):
            return (_SINGLE + counts.bytes_each) * counts.trained
        return each * (counts.trained + share)

    def _uses_bf16_optimizer(self, counts: Counts) -> bool:
        """Whether DeepSpeed takes its bf16 optimizer instead of its ZeRO-1."""
        mixed = self.accumulates_single and counts.bytes_each < _SINGLE
        return self.stage == 1 and mixed and not self.optimizer_on_host

    def _sent_each(self, counts: Counts) -> int:
        """Bytes of each element of a gradient that is sent."""
        return _SINGLE if self.sends_single else counts.bytes_each

    def _buckets(self, counts: Counts, activations: int) -> int:
        each, sent = counts.bytes_each, self._sent_each(counts)
        if self._uses_bf16_optimizer(counts):
            # It has no bucket. What it sends is copied after the backward, instead of the
            # activations, which are gone by then.
            return max(0, _SINGLE * min(_WHOLE_BUCKET, counts.trained) - activations)
        # A bucket that is full is made one tensor, in the dtype that it is sent in.
        copied = min(self.bucket, counts.trained)
        if self.stage == 3:
            return sent * ((self.bucket if self.contiguous else copied) + copied)
        converted = sent if sent != each else 0
        if not self.contiguous:
            return (2 * each + converted) * copied
        if self.stage == 1:
            # It collects in the dtype that gradients are added up in, and reduces after the
            # backward: its copies come instead of activations.
            each = _SINGLE if self.accumulates_single else each
            return (1 + self.overlaps) * each * self.bucket
        return (1 + self.overlaps) * each * self.bucket + (each + converted) * copied

    def gathered_bytes(self, counts: Counts, world: int) -> tuple[int, int]:
        """Bytes of weights that a GPU receives for one micro-batch: from all GPUs, and from those
        that share a second copy with it (hpZ).

        Under ZeRO-3 every weight comes for the forward, and again for the backward where one runs:
        not for a frozen vision tower. A layer that is recomputed is gathered once for both, as
        `stage3_max_reuse_distance` lets it. A second copy of frozen weights is there from the
        start; that of trained ones is made anew in the forward after each update.
        """
        if self.stage < 3:
            return 0, 0
        whole = self._whole(counts)
        forward, backward = counts.total - whole, max(0, counts.trained_backward - whole)
        if self.secondary == 1:
            return _received(counts.bytes_each * (forward + backward), world), 0
        updated = min(counts.trained, forward)
        return (
            _received(counts.bytes_each * updated, world),
            _received(counts.bytes_each * (forward - updated + backward), self.secondary),
        )

    def reduced_bytes(self, counts: Counts, world: int) -> int:
        """Bytes of gradients that a GPU receives each time they are reduced.

        ZeRO-3 scatters them; ZeRO-1 and 2 reduce whole buckets on every GPU, which is twice that.
        """
        once = _received(self._sent_each(counts) * counts.trained, world)
        return once if self.stage == 3 else 2 * once

    def reductions(self, micro_batches: int) -> int:
        """How often gradients are reduced in a step of so many micro-batches."""
        return 1 if self.stage == 1 else micro_batches

    def updated_bytes(self, counts: Counts, world: int) -> int:
        """Bytes of updated weights that a GPU receives after each step (ZeRO-1 and 2)."""
        return 0 if self.stage == 3 else _received(counts.bytes_each * counts.trained, world)


def _mapping(config: Mapping[str, Any], key: str, name: str) -> dict[str, Any]:
    """A section of a configuration, without what says "auto", as DeepSpeed leaves it out.

    Raises:
        ValueError: when it is no mapping.
    """
    section = config.get(key) or {}
    if not isinstance(section, dict):
        raise ValueError(f"sharding {name!r} sets {key} to {section!r}; it is a JSON object")
    return {one: value for one, value in section.items() if value != "auto"}


def _on_host(offload: Any) -> bool:
    return isinstance(offload, dict) and offload.get("device", "none") in ("cpu", "nvme")


def _received(whole: int, world: int) -> int:
    """Of a whole that is spread evenly, what a GPU does not have itself."""
    return whole * (world - 1) // world
