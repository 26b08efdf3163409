"""A training step at the true size: time, memory, samples a second, and where the time goes.

Ours runs through the engine that `ibtrain train` uses; transformers' runs as its users write it:
padded, SDPA, bf16 weights, the frozen parts without gradients, torch's fused AdamW on fp32 copies
of what is trained. Weights are random and made on the device.
"""

import cProfile
import gc
import hashlib
import pstats
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ibtrain.torchvision_mend  # isort: skip
import torch
from torch import Tensor, nn
from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration

from gpu_parts.lengths import LONGEST, Lengths, drawn, longest, packed_batch, padded_batch
from gpu_parts.sheet import Job, Sheet, card
from ibtrain.batch import Batch
from ibtrain.config import Recipe, load_recipe
from ibtrain.model.instructblip import part_of
from ibtrain.pretrained.fit import parameter_shapes
from ibtrain.pretrained.published import LANGUAGE_MODELS, published_config

assert ibtrain.torchvision_mend

BATCHES, ROUNDS = 4, 3
"""Micro-batches of different lengths, and how often each is run."""
SAMPLES, REHEARSED_SAMPLES = 16, 2
MANY_SAMPLES, MANY_REHEARSED_SAMPLES = 64, 3
"""A micro-batch long enough that the host is not what it waits for."""
WITH_MANY = ("step-7b", "step-7b-transformers")
MODELS = {
    "step-7b": ("vicuna-7b", "vicuna7b"),
    "step-13b": ("vicuna-13b", "vicuna13b"),
    "step-t5-xxl": ("flan-t5-xxl", "flan-t5-xxl"),
}


def run(job: Job, sheet: Sheet) -> None:
    """The part's model and implementation, by its name."""
    name, _, variant = job.name.partition("b-")
    name = next(known for known in MODELS if job.name.startswith(known))
    variant = job.name.removeprefix(name).strip("-")
    if variant == "transformers":
        _theirs(job, sheet, name)
    else:
        _ours(job, sheet, name, variant or "zero2")


def recipe_of(name: str, sharding: str, samples: int) -> Recipe:
    """The shipped recipe on one GPU, a micro-batch a step."""
    batch = [f"training.global_batch={samples}", f"training.micro_batch={samples}"]
    return load_recipe(MODELS[name][1], [f"sharding={sharding}", *batch])


def config_of(name: str, rehearse: bool) -> InstructBlipConfig:
    """The published configuration; in a rehearsal with few and narrow layers."""
    config = published_config(MODELS[name][0])
    config.image_token_index = config.text_config.vocab_size - 1
    if not rehearse:
        return config
    sections = config.to_dict()
    narrow = {"hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 2}
    sections["vision_config"] |= narrow | {"num_attention_heads": 2, "image_size": 56}
    sections["qformer_config"] |= narrow | {"num_attention_heads": 2, "vocab_size": 300}
    language = {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 300}
    if LANGUAGE_MODELS[MODELS[name][0]]["model_type"] == "t5":
        narrow = {"d_model": 128, "d_ff": 160, "num_layers": 2, "num_decoder_layers": 2}
        language = {"num_heads": 2, "vocab_size": 300}
    sections["text_config"] |= narrow | language
    config = InstructBlipConfig(
        **{key: sections[key] for key in ("vision_config", "qformer_config", "text_config")},
        num_query_tokens=config.num_query_tokens,
    )
    config.image_token_index = 299
    return config


def batches_of(rehearse: bool, *, many: bool = False) -> list[Lengths]:
    """The micro-batches that are timed."""
    samples = REHEARSED_SAMPLES if rehearse else SAMPLES
    if many:
        samples = MANY_REHEARSED_SAMPLES if rehearse else MANY_SAMPLES
    most = (20, 12) if rehearse else LONGEST
    return [drawn(samples, number, most) for number in range(BATCHES)]


class _DeviceWeights:
    """Random weights, made where they are wanted: a `TensorSource`."""

    description = "random weights"

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], device: torch.device) -> None:
        self._shapes, self._device = shapes, device

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    def get(self, name: str) -> Tensor:
        shape = self._shapes[name]
        if name.endswith(".bias"):
            return torch.zeros(shape, device=self._device)
        if len(shape) == 1:
            return torch.ones(shape, device=self._device)
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1
        generator = torch.Generator(self._device).manual_seed(seed)
        return 0.02 * torch.randn(shape, generator=generator, device=self._device)


def _ours(job: Job, sheet: Sheet, name: str, sharding: str) -> None:
    from ibtrain.distributed.processes import start_processes
    from ibtrain.training.engine import Engine

    config = config_of(name, job.rehearse)
    lengths = batches_of(job.rehearse)
    recipe = recipe_of(name, sharding, lengths[0].samples)
    shapes = parameter_shapes(config)
    with card(job, alone=True):
        begun = time.perf_counter()
        ranks = start_processes()
        source = _DeviceWeights(shapes, job.device)
        engine = Engine(recipe, ranks, config, dict.fromkeys(shapes, source))
        _synchronize(job)
        sheet.facts["load_seconds"] = time.perf_counter() - begun
        sheet.facts["loaded_bytes"] = _allocated(job)
        timer = _Timer(job, sheet, config)
        update = 0

        def step(batch: Batch) -> float:
            nonlocal update
            losses, _ = engine.step([batch], batch.answer_ids_A.numel(), 1e-5, update)
            update += 1
            return float(losses[0].mean())

        packed = [packed_batch(each, config, job.device) for each in lengths]
        for recompute in (True, False):
            engine.model.recompute = recompute
            engine.model.train()
            timer.measure(step, packed, lengths, recompute=recompute)
            if not recompute:
                timer.profile(step, packed[0])
        many = batches_of(job.rehearse, many=True) if job.name in WITH_MANY else []
        packed = [packed_batch(each, config, job.device) for each in many]
        for recompute in (False, True) if many else ():
            engine.model.recompute = recompute
            engine.model.train()
            timer.measure(step, packed, many, recompute=recompute)
        engine.model.recompute = True
        engine.model.train()
        full = longest(lengths[0].samples, (20, 12) if job.rehearse else LONGEST)
        timer.measure(
            step, [packed_batch(full, config, job.device)], [full], recompute=True, kind="longest"
        )


def _theirs(job: Job, sheet: Sheet, name: str) -> None:
    config = config_of(name, job.rehearse)
    lengths = batches_of(job.rehearse)
    with card(job, alone=True):
        begun = time.perf_counter()
        model = _their_model(config, job.device)
        trained = [each for each in model.parameters() if each.requires_grad]
        masters = [each.detach().float().requires_grad_() for each in trained]
        optimizer = torch.optim.AdamW(masters, lr=1e-5, fused=not job.rehearse)
        _synchronize(job)
        sheet.facts["load_seconds"] = time.perf_counter() - begun
        sheet.facts["loaded_bytes"] = _allocated(job)
        timer = _Timer(job, sheet, config)

        def step(batch: dict[str, Tensor]) -> float:
            loss = model(**batch).loss
            loss.backward()
            for master, parameter in zip(masters, trained, strict=True):
                if parameter.grad is not None:
                    master.grad, parameter.grad = parameter.grad.float(), None
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                torch._foreach_copy_(trained, masters)
            return float(loss.detach())

        padded = [padded_batch(each, config, job.device) for each in lengths]
        for recompute in (True, False):
            _their_recompute(model, recompute)
            timer.measure(step, padded, lengths, recompute=recompute)
            if not recompute:
                timer.profile(step, padded[0])
        many = batches_of(job.rehearse, many=True) if job.name in WITH_MANY else []
        padded = [padded_batch(each, config, job.device) for each in many]
        for recompute in (True, False) if many else ():
            _their_recompute(model, recompute)
            timer.measure(step, padded, many, recompute=recompute)


def _their_model(config: InstructBlipConfig, device: torch.device) -> Any:
    """transformers' InstructBLIP with random weights; the vision tower and the language model are
    frozen, the tower's last norm is not.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device, _uninitialised():
            model = InstructBlipForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, 0.02)
    # The angles' frequencies, which a default dtype of bf16 would round.
    from ibtrain.model.language import restore_frequencies

    restore_frequencies(model.language_model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in ("qformer", "projection"))
    return model.train()


def _uninitialised() -> Any:
    from ibtrain.training.engine import _no_weight_initialization

    return _no_weight_initialization()


def _their_recompute(model: nn.Module, recompute: bool) -> None:
    language: Any = model.language_model
    if recompute:
        language.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        language.gradient_checkpointing_disable()


class _Timer:
    """Runs steps and writes down what they took."""

    def __init__(self, job: Job, sheet: Sheet, config: InstructBlipConfig) -> None:
        self.job, self.sheet, self.queries = job, sheet, config.num_query_tokens

    def measure(
        self,
        step: Callable[[Any], float],
        batches: list[Any],
        lengths: list[Lengths],
        *,
        recompute: bool,
        kind: str = "mixture",
    ) -> None:
        """Median and mean seconds of a step over the batches, after each was run once."""
        samples = lengths[0].samples
        row: dict[str, Any] = {"kind": kind, "samples": samples, "recompute": recompute}
        try:
            row |= self._measured(step, batches, lengths)
        except torch.OutOfMemoryError as error:
            row |= {"out_of_memory": str(error).splitlines()[0]}
        # A step that failed for want of memory leaves its tensors in the traceback.
        gc.collect()
        if not self.job.rehearse:
            torch.cuda.empty_cache()
        self.sheet.add(**row)

    def _measured(
        self, step: Callable[[Any], float], batches: list[Any], lengths: list[Lengths]
    ) -> dict[str, Any]:
        cuda = not self.job.rehearse
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        first = time.perf_counter()
        losses = [step(batch) for batch in batches]
        _synchronize(self.job)
        first = time.perf_counter() - first
        taken = []
        for _ in range(1 if self.job.rehearse else ROUNDS):
            for batch in batches:
                begun = time.perf_counter()
                losses.append(step(batch))
                _synchronize(self.job)
                taken.append(time.perf_counter() - begun)
        samples = lengths[0].samples
        return {
            "tokens": [each.tokens(self.queries) for each in lengths],
            "padded_tokens": [each.padded(self.queries) for each in lengths],
            "answer_tokens": [sum(each.answers) for each in lengths],
            "instruction_tokens": [sum(each.instructions) for each in lengths],
            "first_round_seconds": first,
            "seconds": taken,
            "mean_seconds": statistics.mean(taken),
            "median_seconds": statistics.median(taken),
            "samples_per_second": samples / statistics.mean(taken),
            "losses": losses,
            "peak_bytes": torch.cuda.max_memory_allocated() if cuda else 0,
            "reserved_bytes": torch.cuda.max_memory_reserved() if cuda else 0,
            "used_bytes": _used() if cuda else 0,
        }

    def profile(self, step: Callable[[Any], float], batch: Any) -> None:
        """Where the device's time of one step goes: the kernels that take most of it."""
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU]
        if not self.job.rehearse:
            activities.append(ProfilerActivity.CUDA)
        try:
            step(batch)
            _synchronize(self.job)
            with profile(activities=activities) as watched:
                step(batch)
                _synchronize(self.job)
        except torch.OutOfMemoryError:
            return
        kernels: dict[str, list[float]] = {}
        for event in watched.events() or ():
            if str(event.device_type).endswith("CUDA"):
                known = kernels.setdefault(event.name, [0.0, 0])
                known[0] += event.device_time_total / 1e3
                known[1] += 1
        busiest = sorted(kernels.items(), key=lambda item: -item[1][0])
        self.sheet.facts["device_milliseconds"] = sum(each[0] for each in kernels.values())
        self.sheet.facts["launches"] = int(sum(each[1] for each in kernels.values()))
        self.sheet.facts["kernels"] = [
            {"name": name[:160], "milliseconds": taken, "launches": int(count)}
            for name, (taken, count) in busiest[:40]
        ]
        self.sheet.facts["host_operations"] = [
            {
                "name": event.key[:100],
                "milliseconds": event.self_cpu_time_total / 1e3,
                "calls": event.count,
            }
            for event in sorted(watched.key_averages(), key=lambda it: -it.self_cpu_time_total)[:40]
        ]
        self.sheet.facts["host_functions"] = _functions(lambda: step(batch))
        self.sheet.write()


def _functions(call: Callable[[], Any]) -> list[dict[str, Any]]:
    """The host's time of a call by Python's functions, those that take most themselves first;
    threads of torch's backward are not in it.
    """
    watched = cProfile.Profile()
    watched.runcall(call)
    rows = sorted(pstats.Stats(watched).stats.items(), key=lambda item: -item[1][2])  # type: ignore[attr-defined]
    whole = max((row[1][3] for row in rows), default=0.0)
    rows = rows[:60] + [row for row in rows[60:] if row[1][3] > whole / 40]
    return [
        {
            "name": f"{'/'.join(Path(file).parts[-3:])}:{line} {function}",
            "calls": calls,
            "milliseconds": 1e3 * own,
            "with_callees": 1e3 * together,
        }
        for (file, line, function), (_, calls, own, together, _) in rows
    ]


def _synchronize(job: Job) -> None:
    if not job.rehearse:
        torch.cuda.synchronize()


def _allocated(job: Job) -> int:
    return 0 if job.rehearse else torch.cuda.memory_allocated()


def _used() -> int:
    """Bytes of the card that are taken, by whomever: the context and NCCL's buffers are among
    them.
    """
    free, total = torch.cuda.mem_get_info()
    return total - free
