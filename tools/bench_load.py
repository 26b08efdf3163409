"""Peak host memory and time of loading a model under ZeRO-3: ours, and transformers' own
`from_pretrained` under `HfDeepSpeedConfig`, on the same files and the same ranks.

    python tools/bench_load.py [--ranks 2] [--gigabytes 4] [--stored fp32] [--shards 3.17]
        [--repeats 3] [--directory DIR] [--json]

Writes an InstructBLIP of random weights of the given size, once, in files like the released ones:
fp32, of 10 GB (the 7B's 31.7 GB fill 3.17 of them, in 4 files; the 13B's fill 5.7). Starts the
ranks of each loader in processes of their own (gloo, on the CPU), and reports each rank's largest
resident memory (read every 5 ms) before and during the load, what of it was anonymous, and its
partition, which stays. Of the repeats the one with the median peak counts: with bf16 files
transformers' peak differs by up to a third from run to run, as its heap happens to break up; ours
by a hundredth.

Ratios, ours to transformers'; below 1 is less memory:

- `ratio`: of the largest rank's peak, libraries and all. Target: at most 0.5. Two ranks
  on a CPU keep half of the weights each, whoever loads them; on a GPU the partition is not in
  host memory.
- `ratio_floor`: what `ratio` would be if our load took the partition and not a byte more. The
  libraries (0.45 GiB) and the partition (1 / ranks of the weights) are there in any loader.
- `ratio_sum`: of the peaks' sum over the ranks. Mapped pages that ranks share count in each.
- `ratio_added`: of what the load added to the largest rank: its peak, less what was there before.
- `ratio_beyond`: of what the largest rank needed beyond the libraries and its partition, which
  is gone when the load has ended.
- `ratio_anonymous`: of the largest rank's anonymous memory, which the system cannot take back.
  transformers' first rank maps a whole shard; those pages are in its peak, and not in this.
- `ratio_tuned`: as `ratio`, to transformers started with MALLOC_MMAP_THRESHOLD_=65536. Our loader
  asks glibc for the same while it loads (`training.loading.memory_given_back`), so this is what is
  left of the difference when transformers' user knows of the variable.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ibtrain.torchvision_mend  # before transformers is imported

assert ibtrain.torchvision_mend
GIB = 2**30
LOADERS = ("ibtrain", "transformers", "transformers_tuned")
TUNING = {"MALLOC_MMAP_THRESHOLD_": str(64 * 1024)}  # as training.loading sets it


def main(arguments: list[str] | None = None) -> int:
    """Runs both loaders (or one rank of one, in a process of its own)."""
    parsed = _parser().parse_args(arguments)
    if parsed.rank_of:
        report = measure(parsed.rank_of, parsed.directory)
        print("RESULT " + json.dumps(report), flush=True)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        directory = parsed.directory or Path(scratch) / "model"
        if not (directory / "config.json").is_file():
            write_model(directory, parsed.gigabytes, parsed.shards, parsed.stored)
        runs = {
            name: [run(name, directory, parsed.ranks) for _ in range(parsed.repeats)]
            for name in LOADERS
        }
    results = {name: sorted(runs[name], key=_peak)[parsed.repeats // 2] for name in LOADERS}
    peaks = {name: [_peak(ranks) for ranks in runs[name]] for name in LOADERS}
    compared = ratios(results)
    if parsed.json:
        print(json.dumps(results | {"peaks": peaks} | compared))
        return 0
    for name in LOADERS:
        for number, rank in enumerate(results[name]):
            print(
                f"{name:18} rank {number}: peak {rank['peak'] / GIB:.2f} GiB "
                f"({rank['before'] / GIB:.2f} before the load; its partition "
                f"{rank['partition'] / GIB:.2f}; anonymous {rank['anonymous'] / GIB:.2f}), "
                f"{rank['seconds']:.1f} s"
            )
        print(f"{name:18} largest peaks:", *(f"{peak / GIB:.2f}" for peak in peaks[name]))
    print(
        "ours to theirs: peak {ratio:.2f} (were ours its partition alone: {ratio_floor:.2f}), sum "
        "over the ranks {ratio_sum:.2f}, added by the load {ratio_added:.2f}, beyond the "
        "partition {ratio_beyond:.2f}, anonymous {ratio_anonymous:.2f}, peak to transformers with "
        "glibc tuned as ours {ratio_tuned:.2f}".format(**compared)
    )
    return 0


def ratios(results: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Ours to transformers'; the module's docstring says what each of them is."""
    ours, theirs, tuned = (results[name] for name in LOADERS)

    def ratio(measure: Callable[[list[dict[str, float]]], float]) -> float:
        return measure(ours) / measure(theirs)

    return {
        "ratio": ratio(_peak),
        "ratio_floor": max(rank["before"] + rank["partition"] for rank in ours) / _peak(theirs),
        "ratio_sum": ratio(lambda ranks: sum(rank["peak"] for rank in ranks)),
        "ratio_added": ratio(lambda ranks: max(rank["peak"] - rank["before"] for rank in ranks)),
        "ratio_beyond": ratio(
            lambda ranks: max(rank["peak"] - rank["before"] - rank["partition"] for rank in ranks)
        ),
        "ratio_anonymous": ratio(lambda ranks: max(rank["anonymous"] for rank in ranks)),
        "ratio_tuned": _peak(ours) / _peak(tuned),
    }


def _peak(ranks: list[dict[str, float]]) -> float:
    """The largest rank's peak."""
    return max(rank["peak"] for rank in ranks)


def write_model(directory: Path, gigabytes: float, shards: float, stored: str) -> None:
    """An InstructBLIP in transformers' format of about `gigabytes` of weights, counted in bf16:
    Vicuna's proportions at a smaller width. As fp32 they take twice the disk; both loaders hold
    bf16. All of them are `shards` times the largest safetensors file.
    """
    import torch

    from ibtrain.export.weight_shards import write_weights
    from ibtrain.pretrained.fit import parameter_shapes

    config = scaled_config(gigabytes)
    shapes = parameter_shapes(config)
    directory.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[stored]
    total = sum(dtype.itemsize * torch.Size(shape).numel() for shape in shapes.values())

    def tensors() -> Any:
        for name, shape in shapes.items():
            # Cheap values that differ from place to place, so that a slice gone astray shows.
            begin = torch.randint(0, 1000, (1,), generator=generator).item()
            count = torch.Size(shape).numel()
            yield name, ((torch.arange(count) + begin) % 997 / 9970).to(dtype).reshape(shape)

    write_weights(tensors(), directory, max(1, int(total / shards)))
    config.architectures = ["InstructBlipForConditionalGeneration"]
    config.save_pretrained(directory)


def scaled_config(gigabytes: float) -> Any:
    """A configuration whose bf16 weights take about so many gigabytes, most of them a Llama's."""
    from transformers import (
        InstructBlipConfig,
        InstructBlipQFormerConfig,
        InstructBlipVisionConfig,
        LlamaConfig,
    )

    width = 1024
    layer = 4 * width**2 + 3 * width * 2752
    layers = max(1, round(gigabytes * 1e9 / 2 / layer))
    return InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(
            hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4
        ).to_dict(),
        qformer_config=InstructBlipQFormerConfig(
            hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4
        ).to_dict(),
        text_config=LlamaConfig(
            vocab_size=32001,
            hidden_size=width,
            intermediate_size=2752,
            num_hidden_layers=layers,
            num_attention_heads=8,
        ).to_dict(),
        image_token_index=32000,
    )


def run(loader: str, directory: Path, ranks: int) -> list[dict[str, float]]:
    """Starts the ranks of one loader and returns what each measured."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(ranks):
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "HF_HUB_OFFLINE": "1",
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
        }
        if loader == "transformers_tuned":
            environment |= TUNING
        command = [sys.executable, __file__, "--rank-of", loader, "--directory", str(directory)]
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        )
    results = []
    for process in processes:
        output, _ = process.communicate()
        lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
        if process.returncode or not lines:
            raise RuntimeError(f"a rank of {loader} ended with {process.returncode}: {output}")
        results.append(json.loads(lines[-1].removeprefix("RESULT ")))
    return results


def measure(loader: str, directory: Path) -> dict[str, float]:
    """Loads in this process, as one rank; bytes and seconds."""
    load = (_ours if loader == "ibtrain" else _theirs)(directory)
    (before, _), watch = _resident(), _Watch()
    started = time.perf_counter()
    model = load()
    seconds = time.perf_counter() - started
    peak, anonymous = watch.stop()
    report = {"before": before, "peak": peak, "anonymous": anonymous, "seconds": seconds}
    # transformers builds the vision tower's attention biases in a way that escapes partitioning.
    held = [getattr(parameter, "ds_tensor", parameter) for parameter in model.parameters()]
    partition = sum(tensor.numel() * tensor.element_size() for tensor in held)
    return report | {"partition": partition}


def _ours(directory: Path) -> Callable[[], Any]:
    from ibtrain.distributed.processes import start_processes
    from ibtrain.pretrained.base import directory_config, directory_source
    from ibtrain.pretrained.fit import choose_sources
    from ibtrain.training.engine import load_model, sharding_config

    ranks = start_processes()
    recipe = _recipe(directory, ranks.world)
    ds_config = sharding_config(recipe, ranks.world)
    config = directory_config(directory)
    import torch

    def load() -> Any:
        chosen = choose_sources(config, True, [directory_source(directory)])
        return load_model(recipe, ranks, ds_config, config, chosen, torch.device("cpu"))

    return load


def _theirs(directory: Path) -> Callable[[], Any]:
    import torch
    from transformers import InstructBlipForConditionalGeneration
    from transformers.integrations import HfDeepSpeedConfig

    from ibtrain.distributed.processes import start_processes
    from ibtrain.training.engine import sharding_config

    ranks = start_processes()
    ds_config = sharding_config(_recipe(directory, ranks.world), ranks.world)

    def load() -> Any:
        kept = HfDeepSpeedConfig(ds_config)  # counts for as long as it lives
        model = InstructBlipForConditionalGeneration.from_pretrained(
            directory, dtype=torch.bfloat16, local_files_only=True
        )
        assert kept
        return model

    return load


def _recipe(directory: Path, world: int) -> Any:
    from ibtrain.config import Recipe

    return Recipe.model_validate(
        {
            "name": "bench-load",
            "output": directory / "never-written",
            "sharding": "zero3",
            "model": {"base": directory, "precision": "bf16"},
            "data": {"mixture": [{"dataset": "vqav2", "path": "none"}]},
            "training": {"steps": 1, "global_batch": world, "micro_batch": 1},
        }
    )


class _Watch:
    """The largest resident and anonymous memory of this process while it is watched."""

    def __init__(self) -> None:
        self._largest = _resident()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(0.005):
            self._look()

    def _look(self) -> None:
        resident, anonymous = _resident()
        self._largest = max(self._largest[0], resident), max(self._largest[1], anonymous)

    def stop(self) -> tuple[int, int]:
        """Ends the watch; bytes, each at its own moment."""
        self._stopped.set()
        self._thread.join()
        self._look()
        return self._largest


def _resident() -> tuple[int, int]:
    """Bytes that this process has in memory, mapped files included, and without them."""
    _, resident, shared = map(int, Path("/proc/self/statm").read_text().split()[:3])
    page = os.sysconf("SC_PAGE_SIZE")
    return resident * page, (resident - shared) * page


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench_load.py", description="Loading under ZeRO-3.")
    parser.add_argument("--ranks", type=int, default=2, metavar="N")
    parser.add_argument("--gigabytes", type=float, default=4.0, metavar="N", help="in bf16")
    parser.add_argument(
        "--shards", type=float, default=3.17, metavar="N", help="full files that the weights make"
    )
    parser.add_argument("--stored", choices=("bf16", "fp32"), default="fp32")
    parser.add_argument("--repeats", type=int, choices=range(1, 10), default=3, metavar="N")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="a model, made if not there")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--rank-of", choices=LOADERS, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
