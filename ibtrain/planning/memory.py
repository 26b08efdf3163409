"""What a sharding choice holds on each GPU and sends between them, by its DeepSpeed configuration.

The figures of DeepSpeed's buffers are those of 0.19.8 (`runtime/zero/stage_1_and_2.py`,
`stage3.py`): what each stage keeps, in which dtype, how large.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ibtrain.model.instructblip import InstructBlip
from ibtrain.planning.rehearsal import DTYPES

RESERVE = 1_600_000_000
"""Bytes outside torch's tensors: CUDA's context, NCCL's buffers, cuBLAS's workspaces."""
FRAGMENTATION = 0.05
"""Of the activations: lengths differ from batch to batch, and freed blocks do not fit the next."""
_SINGLE = 4
_ADAM = 12
"""Bytes for each trained parameter: fp32 weight and both moments."""


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
    keeps_inputs: bool
    """Whether linear layers run through DeepSpeed's own function, which keeps every input."""
    accumulates_single: bool
    """Whether gradients are added up in fp32."""
    weights_on_host: bool
    optimizer_on_host: bool

    @classmethod
    def of(cls, name: str, config: Mapping[str, Any], world: int) -> "Sharding":
        """What a configuration asks for; keys left out have DeepSpeed's defaults.

        Raises:
            ValueError: when its ZeRO stage is none of 1, 2 and 3, or weights are quantised.
        """
        zero = config.get("zero_optimization") or {}
        stage = zero.get("stage", 0)
        if stage not in (1, 2, 3):
            raise ValueError(f"sharding {name!r} has ZeRO stage {stage}; use 1, 2 or 3")
        quantised = sorted(key for key in zero if key.startswith("zero_quantized") and zero[key])
        if quantised:
            raise ValueError(
                f"sharding {name!r} sets {quantised[0]}, whose memory is not known here; plan it "
                "without"
            )
        accumulated = (config.get("data_types") or {}).get("grad_accum_dtype")
        return cls(
            name=name,
            stage=stage,
            overlaps=zero.get("overlap_comm", stage == 3),
            contiguous=zero.get("contiguous_gradients", True),
            bucket=int(zero.get("reduce_bucket_size", 5e8)),
            live=int(zero.get("stage3_max_live_parameters", 1e9))
            + int(zero.get("stage3_prefetch_bucket_size", 5e7)),
            persistent=int(zero.get("stage3_param_persistence_threshold", 1e5)),
            secondary=min(world, max(1, int(zero.get("zero_hpz_partition_size", 1)))),
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
            activations: the peak of a rehearsal.
            optimizer: bytes of each trained parameter's master weight and moments.
        """
        share = -(-counts.trained // world)
        parts = {
            "weights": self._weights(counts, world),
            "gathered": self._gathered(counts),
            "gradients": self._gradients(counts, share),
            "optimizer": 0 if self.optimizer_on_host else optimizer * share,
            "activations": activations,
            "buckets": self._buckets(counts),
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
        """Of whole steps. Under ZeRO-1 every GPU adds every gradient up and takes its partition out
        at the end; under the others it has its partition alone.
        """
        each = _SINGLE if self.accumulates_single else counts.bytes_each
        return each * (share if self.stage > 1 else counts.trained + share)

    def _buckets(self, counts: Counts) -> int:
        if not self.contiguous:
            return _SINGLE * min(self.bucket, counts.trained)
        if self.stage == 3:
            return _SINGLE * self.bucket
        # ZeRO-1 collects in the dtype that gradients are added up in. ZeRO-2 collects in the
        # model's, and sends a copy in fp32.
        if self.stage == 1 and self.accumulates_single:
            return (1 + self.overlaps) * _SINGLE * self.bucket
        sent = 0 if counts.bytes_each == _SINGLE else _SINGLE * min(self.bucket, counts.trained)
        return (1 + self.overlaps) * counts.bytes_each * self.bucket + sent

    def gathered_bytes(self, counts: Counts, world: int) -> tuple[int, int]:
        """Bytes of weights that a GPU receives for one micro-batch: for the forward, the backward.

        Under ZeRO-3 every weight comes for the forward, and again for the backward where one runs:
        not for a frozen vision tower. A layer that is recomputed is gathered once for both, as
        `stage3_max_reuse_distance` lets it.
        """
        if self.stage < 3:
            return 0, 0
        whole = self._whole(counts)
        forward = counts.bytes_each * (counts.total - whole)
        backward = counts.bytes_each * max(0, counts.trained_backward - whole)
        others = self.secondary if self.secondary > 1 else world
        return _received(forward, world), _received(backward, others)

    def reduced_bytes(self, counts: Counts, world: int) -> int:
        """Bytes of gradients that a GPU receives each time they are reduced (in fp32).

        ZeRO-3 scatters them; ZeRO-1 and 2 reduce whole buckets on every GPU, which is twice that.
        """
        once = _received(_SINGLE * counts.trained, world)
        return once if self.stage == 3 else 2 * once

    def reductions(self, micro_batches: int) -> int:
        """How often gradients are reduced in a step of so many micro-batches."""
        return 1 if self.stage == 1 else micro_batches

    def updated_bytes(self, counts: Counts, world: int) -> int:
        """Bytes of updated weights that a GPU receives after each step (ZeRO-1 and 2)."""
        return 0 if self.stage == 3 else _received(counts.bytes_each * counts.trained, world)


def _on_host(offload: Any) -> bool:
    return isinstance(offload, dict) and offload.get("device", "none") in ("cpu", "nvme")


def _received(whole: int, world: int) -> int:
    """Of a whole that is spread evenly, what a GPU does not have itself."""
    return whole * (world - 1) // world
