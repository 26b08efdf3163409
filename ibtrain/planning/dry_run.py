"""One micro-batch of the real model on tensors without storage: what it keeps, computes and moves.

The model runs forward and backward on torch's meta device, at its true size, in about a second.
Nothing is estimated by a formula that could fall behind the code: what is recomputed, what a frozen
part does not keep, what a kernel saves for its backward shows as it is.

Shapes: B samples, T packed tokens, V visual rows, A answer tokens (see batch.py).
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import InstructBlipConfig

from ibtrain.batch import Batch
from ibtrain.config import ModelSection
from ibtrain.model.instructblip import InstructBlip, set_trainable
from ibtrain.planning.flops import flops_of

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_UNWRITTEN = ("aten::empty", "aten::new_empty")
_GATHERING = ("aten::embedding", "aten::index_select", "aten::index")
"""They read as many rows as they return, not the whole table."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of every sample of a micro-batch, visual tokens apart.

    Raises:
        ValueError: when there is none of either.
    """

    instruction: int
    answer: int
    """The end token included."""

    def __post_init__(self) -> None:
        for name, tokens in (("instruction", self.instruction), ("answer", self.answer)):
            if tokens < 1:
                raise ValueError(f"a sample of {tokens} {name} tokens: there must be at least 1")


@dataclass(frozen=True)
class Operation:
    """One launch on the device."""

    flops: int
    bytes: int
    """Read and written, each tensor once."""
    is_attention: bool = False


@dataclass(frozen=True)
class DryRun:
    """What one micro-batch of one rank did."""

    peak_bytes: int
    """The most that was alive at once beyond the weights: activations and the batch. A parameter's
    gradient counts until it is whole; then DeepSpeed takes it over."""
    operations: tuple[Operation, ...]
    module_calls: int
    """Forward calls of modules that have parameters of their own, those of a recomputation too."""
    module_calls_with_gradient: int
    """Those of them that a backward belongs to, unless the call was a recomputation."""

    @property
    def flops(self) -> int:
        """Of all operations together."""
        return sum(operation.flops for operation in self.operations)


def build(config: InstructBlipConfig, section: ModelSection, kernels: bool) -> InstructBlip:
    """The model at its full size without storage, in training mode.

    Raises:
        ValueError: when the architecture or the adapters are not usable.
    """
    with torch.device("meta"):
        model = InstructBlip(
            config,
            section.instruction_aware,
            section.lora,
            section.gradient_checkpointing,
            kernels=kernels,
        )
    model.to(DTYPES[section.precision])
    set_trainable(model, section.train_parts.model_dump())
    language = model.language_model
    if not language.config.is_encoder_decoder:
        # transformers switches autocast off around the angles, which the meta device lacks.
        language.model.rotary_emb = _Angles(language.model.rotary_emb)
    return model


def dry_run(
    model: InstructBlip,
    samples: int,
    lengths: Lengths,
    *,
    recompute: bool,
    keeps_inputs: bool = False,
) -> DryRun:
    """Runs one micro-batch forward and backward.

    Args:
        model: of `build`.
        samples: images, each with an instruction and an answer.
        lengths: tokens of each of them.
        recompute: gradient checkpointing.
        keeps_inputs: whether every linear layer keeps its input for the backward, needed or not, as
            DeepSpeed's own linear function does under ZeRO-3.
    """
    model.recompute = recompute
    model.train()
    watch, calls = _Watch(model), _Calls()
    taken = [
        one.register_post_accumulate_grad_hook(_take_gradient)
        for one in model.parameters()
        if one.requires_grad
    ]
    try:
        with watch, _called(model, calls), _called(model, _keep) if keeps_inputs else _nothing():
            batch = equal_batch(model.config, samples, lengths)
            losses_A = model(batch)
            with_gradient = calls.with_gradient
            losses_A.sum().backward()
    finally:
        for handle in taken:
            handle.remove()
    return DryRun(watch.peak, tuple(watch.operations), calls.all, with_gradient)


def equal_batch(config: InstructBlipConfig, samples: int, lengths: Lengths) -> Batch:
    """A micro-batch of equally long samples, one image each, on the meta device."""
    queries = config.num_query_tokens
    prompt = queries + lengths.instruction
    # The last answer token is predicted, and read by no one (collate.py).
    row = prompt + lengths.answer - 1
    side = config.vision_config.image_size

    def integers(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device="meta")

    starts = integers(samples + 1, dtype=torch.int32)
    return Batch(
        pixels_ICHW=torch.zeros(samples, 3, side, side, device="meta"),
        text_ids_L=integers(samples * lengths.instruction),
        cu_text_I1=starts,
        max_text=lengths.instruction,
        token_ids_T=integers(samples * row),
        positions_T=integers(samples * row),
        cu_tokens_B1=starts,
        max_tokens=row,
        visual_rows_V=integers(samples * queries),
        answer_rows_A=integers(samples * lengths.answer),
        answer_ids_A=integers(samples * lengths.answer),
        answer_sample_A=integers(samples * lengths.answer),
        cu_answers_B1=starts,
        max_answer=lengths.answer,
        prompt_rows_P=integers(samples * prompt),
        cu_prompts_B1=starts,
        max_prompt=prompt,
        sample_ids=(),
        datasets=(),
    )


class _Angles(nn.Module):
    """Cosines and sines of a Llama's positions, by their shape alone."""

    def __init__(self, plain: Any) -> None:
        super().__init__()
        config = plain.config
        width = getattr(config, "head_dim", None)
        self.width: int = width or config.hidden_size // config.num_attention_heads

    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """[B, L, D] and [B, L] -> two tables [B, L, K]."""
        shape = (*position_ids.shape, self.width)
        return hidden.new_zeros(shape), hidden.new_zeros(shape)


class _Watch(TorchDispatchMode):
    """Follows every operator: which storages live, and what each launch computes and moves."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._alive = 0
        self.operations: list[Operation] = []
        self._bytes_of: dict[int, int] = {}
        for tensor in (*model.parameters(), *model.buffers()):
            self._bytes_of[id(tensor.untyped_storage())] = 0  # weights are counted elsewhere

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        result = function(*args, **options)
        returned = [one for one in tree_leaves(result) if isinstance(one, Tensor)]
        new = sum([self._enter(one) for one in returned])
        name = function._schema.name
        if (new or function._schema.is_mutable) and not name.startswith(_UNWRITTEN):
            flops = flops_of(function, args, options, result)
            moved = _moved(name, args, returned)
            self.operations.append(Operation(flops, moved, "attention" in name))
        return result

    def _enter(self, tensor: Tensor) -> bool:
        """Whether the tensor's storage is new; counts it until it is dropped."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._bytes_of:
            return False
        self._bytes_of[key] = storage.nbytes()
        self._alive += storage.nbytes()
        self.peak = max(self.peak, self._alive)
        weakref.finalize(storage, self._drop, key)
        return True

    def _drop(self, key: int) -> None:
        self._alive -= self._bytes_of.pop(key)


def _moved(name: str, arguments: Any, returned: list[Tensor]) -> int:
    written = sum(tensor.nbytes for tensor in returned)
    if name in _GATHERING:
        return 2 * written
    return written + sum(one.nbytes for one in tree_leaves(arguments) if isinstance(one, Tensor))


def _take_gradient(parameter: Tensor) -> None:
    parameter.grad = None


_nothing = contextlib.nullcontext


@contextlib.contextmanager
def _called(model: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    """While it lasts, `hook` follows every forward of a module with parameters of its own."""
    handles = [
        module.register_forward_hook(hook)
        for module in model.modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Calls:
    """Counts forward calls, and those whose result has a gradient."""

    def __init__(self) -> None:
        self.all = self.with_gradient = 0

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.all += 1
        tensors = [one for one in tree_leaves(output) if isinstance(one, Tensor)]
        self.with_gradient += any(one.requires_grad for one in tensors)


def _keep(module: nn.Module, inputs: Any, output: Any) -> Any:
    """Makes a linear layer's result hold its input until the backward."""
    if not isinstance(module, nn.Linear):
        return None
    return _Keep.apply(output, inputs[0])  # type: ignore[no-untyped-call]


class _Keep(torch.autograd.Function):
    """`output` as it is; `kept` is held until its backward."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(kept)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None
