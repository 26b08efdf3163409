"""Peak host memory and time of loading a model under ZeRO-3: ours, and transformers' own
`from_pretrained` under `HfDeepSpeedConfig`, on the same files and the same ranks.

    python tools/bench_load.py [--ranks 2] [--gigabytes 2] [--shards 4] [--directory DIR] [--json]

Writes an InstructBLIP of random bf16 weights of the given size, once, in as many files as the
released ones have (4; the 13B has 6); starts the ranks of each loader in processes of their own
(gloo, on the CPU), and reports each rank's largest resident memory (VmRSS, read every 5 ms) before
and during the load, and its partition, which stays. Four ratios, ours to transformers':

- of the largest rank's peak, libraries and all (`ratio`);
- of the sum over the ranks, which is what a node must have (`ratio_sum`);
- of what the load added to the largest rank (`ratio_added`): peak less what was there before;
- of what it needed beyond the partition (`ratio_beyond`), which is gone when it has ended.

Target: at most 0.5. Two ranks on a CPU keep half of the weights each, whoever loads them: of the
four only the last can be that small there. On a GPU the partition is not in host memory.
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
LOADERS = ("ibtrain", "transformers")


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
            write_model(directory, parsed.gigabytes, parsed.shards)
        results = {name: run(name, directory, parsed.ranks) for name in LOADERS}
    document = results | ratios(results)
    if parsed.json:
        print(json.dumps(document))
        return 0
    for name in LOADERS:
        for number, rank in enumerate(results[name]):
            print(
                f"{name:13} rank {number}: peak {rank['peak'] / GIB:.2f} GiB "
                f"({rank['before'] / GIB:.2f} before the load; its partition "
                f"{rank['partition'] / GIB:.2f}), {rank['seconds']:.1f} s"
            )
    print(
        "ours to theirs: peak {ratio:.2f}, sum over the ranks {ratio_sum:.2f}, added by the load "
        "{ratio_added:.2f}, beyond the partition {ratio_beyond:.2f}".format(**document)
    )
    return 0


def ratios(results: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Ours to transformers', of what the docstring of this file says."""

    def ratio(measure: Callable[[list[dict[str, float]]], float]) -> float:
        ours, theirs = (measure(results[name]) for name in LOADERS)
        return ours / theirs

    return {
        "ratio": ratio(lambda ranks: max(rank["peak"] for rank in ranks)),
        "ratio_sum": ratio(lambda ranks: sum(rank["peak"] for rank in ranks)),
        "ratio_added": ratio(lambda ranks: max(rank["peak"] - rank["before"] for rank in ranks)),
        "ratio_beyond": ratio(
            lambda ranks: max(rank["peak"] - rank["before"] - rank["partition"] for rank in ranks)
        ),
    }


def write_model(directory: Path, gigabytes: float, shards: int) -> None:
    """An InstructBLIP in transformers' format of about `gigabytes` of bf16 weights in `shards`
    safetensors files: Vicuna's proportions at a smaller width.
    """
    import torch

    from ibtrain.export.weight_shards import write_weights
    from ibtrain.model.weights import parameter_shapes

    config = scaled_config(gigabytes)
    shapes = parameter_shapes(config)
    directory.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    total = sum(2 * torch.Size(shape).numel() for shape in shapes.values())

    def tensors() -> Any:
        for name, shape in shapes.items():
            # Cheap values that differ from place to place, so that a slice gone astray shows.
            begin = torch.randint(0, 1000, (1,), generator=generator).item()
            count = torch.Size(shape).numel()
            yield name, ((torch.arange(count) + begin) % 997 / 9970).bfloat16().reshape(shape)

    write_weights(tensors(), directory, max(1, total // shards))
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
    load = {"ibtrain": _ours, "transformers": _theirs}[loader](directory)
    before, watch = _resident(), _Watch()
    started = time.perf_counter()
    model = load()
    seconds = time.perf_counter() - started
    report = {"before": before, "peak": watch.stop(), "seconds": seconds}
    # transformers builds the vision tower's attention biases in a way that escapes partitioning.
    held = [getattr(parameter, "ds_tensor", parameter) for parameter in model.parameters()]
    partition = sum(tensor.numel() * tensor.element_size() for tensor in held)
    return report | {"partition": partition}


def _ours(directory: Path) -> Callable[[], Any]:
    from ibtrain.model.base import directory_config, directory_source
    from ibtrain.model.weights import choose_sources
    from ibtrain.training.engine import load_model, sharding_config, start_processes

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

    from ibtrain.training.engine import sharding_config, start_processes

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
    """The largest resident memory of this process while it is watched."""

    def __init__(self) -> None:
        self._peak = _resident()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(0.005):
            self._peak = max(self._peak, _resident())

    def stop(self) -> int:
        """Ends the watch; bytes."""
        self._stopped.set()
        self._thread.join()
        return max(self._peak, _resident())


def _resident() -> int:
    """Bytes that this process has in memory, mapped files included."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench_load.py", description="Loading under ZeRO-3.")
    parser.add_argument("--ranks", type=int, default=2, metavar="N")
    parser.add_argument("--gigabytes", type=float, default=2.0, metavar="N")
    parser.add_argument("--shards", type=int, default=4, metavar="N")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="a model, made if not there")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--rank-of", choices=LOADERS, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
