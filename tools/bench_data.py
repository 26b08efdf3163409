"""What the data path costs: conversion, reading, and the start of a large mixture.

    python tools/bench_data.py [--images N] [--repeats N] [--workers N] [--json]
    python tools/bench_data.py --mixture-start [--json]

The first makes N photo-like JPEGs (640 x 480, about 180 KB, as COCO's), and compares, on the same
images in the same run, taking turns:

conversion  ours: `reencode`, in one process, to a short side of 288 at quality 90.
            loop: open, exif_transpose, convert to RGB, resize (bicubic) to the same size, save as
            JPEG of the same quality, all with Pillow.
            prepare: all of `ibtrain data prepare` (annotations, records, compression, hashes) for
            the same images, one a sample.
            Images per second of processor time of the one process.
reading     ours: the prepared shards through ibtrain's loader: random resized crop (0.5 to 1 of the
            area), mirrored every other time, 224 pixels, normalised; and, beyond what the others
            do, an instruction drawn, tokenized and packed.
            webdataset: the same JPEG bytes in tar files, decoded by its "pil" decoder.
            loose files: the same JPEG bytes as files, a torch Dataset that opens them with Pillow.
            Both with torchvision's RandomResizedCrop(224, (0.5, 1), bicubic), RandomHorizontalFlip,
            ToTensor and Normalize, batched by a torch DataLoader. All three with the same workers.
            Samples per second of wall time, and of processor time of all processes together.

webdataset is asked for by this alone: pip install webdataset. Without it, that row is left out.

--mixture-start writes the indexes of the 13 held-in datasets with their real numbers of samples,
and files of the right sizes without content. In a process of its own it starts a mixture over them:
indexes checked, shares computed, the first epoch's order made.
"""

import argparse
import functools
import importlib.util
import io
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # processes are compared, not threads
import ibtrain.torchvision_mend  # isort: skip

import numpy as np
import psutil
import torch
from PIL import Image, ImageOps

from ibtrain.config import Recipe, load_recipe
from ibtrain.data.images import CLIP_MEAN, CLIP_STD, reencode
from ibtrain.data.preparation.prepare import prepare
from ibtrain.data.shards.records import read_records

assert ibtrain.torchvision_mend
SIZE = 224
BATCH = 32
WARM_BATCHES = 6  # more than the workers hold ready
# Rows as LAVIS counts them (image_train.yaml), else as published; A-OKVQA's two forms both.
HELD_IN = {
    "coco_caption": 566_747,
    "web_capfilt": 13_873_136,
    "textcaps": 109_765,
    "vqav2": 658_104,
    "okvqa": 9_009,
    "aokvqa": 34_112,
    "ocr_vqa": 1_002_146,
    "vqav2_question_generation": 658_104,
    "okvqa_question_generation": 9_009,
    "aokvqa_question_generation": 17_056,
    "llava_conversation": 256_870,
    "llava_detail": 23_240,
    "llava_reasoning": 76_643,
}
SAMPLES_PER_SHARD = 1_900  # of 35 KB, in 64 MiB


def main(arguments: list[str] | None = None) -> int:
    """Runs what is asked for and prints a table or a JSON document."""
    parsed = _parser().parse_args(arguments)
    if parsed.child is not None:
        print(json.dumps(_start_mixture(parsed.child)))
        return 0
    document: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
    }
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        if parsed.mixture_start:
            document["mixture_start"] = mixture_start(directory)
        else:
            raw = _write_photos(directory / "raw", parsed.images)
            sizes = [path.stat().st_size for path in raw.glob("images/*.jpg")]
            document["images"] = {"count": len(sizes), "mean_bytes": round(statistics.mean(sizes))}
            document["conversion"] = conversion(raw, directory, parsed.repeats)
            document["reading"] = reading(directory, parsed.workers, parsed.repeats)
    print(json.dumps(document, indent=2) if parsed.json else _table(document))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench_data.py", description="Measure the data path.")
    parser.add_argument("--images", type=int, default=400, metavar="N")
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="of reading")
    parser.add_argument("--mixture-start", action="store_true", help="only this")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return parser


def photo(number: int, width: int = 640, height: int = 480) -> Image.Image:
    """A picture with the statistics of photographs: 1/f in space, related colours, some grain."""
    source = np.random.default_rng(number)
    across, down = np.fft.rfftfreq(width)[None], np.fft.fftfreq(height)[:, None]
    frequency = np.sqrt(across**2 + down**2)
    frequency[0, 0] = 1
    layers = []
    for _ in range(3):
        waves = source.normal(size=(2, *frequency.shape))
        layer = np.fft.irfft2((waves[0] + 1j * waves[1]) / frequency, s=(height, width))
        layers.append(layer / layer.std())
    mixing = np.array([[45, 45, 45], [15, 0, -15], [-5, 10, -5]])  # mostly light, little colour
    levels = np.stack(layers, -1) @ mixing + source.normal(size=(height, width, 1)) * 4 + 120
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def _write_photos(raw: Path, count: int) -> Path:
    """Photos and one caption each, in the layout of Web CapFilt."""
    (raw / "images").mkdir(parents=True)
    rows = []
    for number in range(count):
        name = f"{number:06}.jpg"
        photo(number).save(raw / "images" / name, quality=92)
        rows.append({"image": name, "caption": f"a photo of the number {number} on the street"})
    (raw / "annotation.json").write_text(json.dumps(rows))
    return raw


def conversion(raw: Path, directory: Path, repeats: int) -> dict[str, Any]:
    """Images per second of processor time: ours, the loop, and all of `prepare`."""
    paths = sorted(raw.glob("images/*.jpg"))
    torch.set_num_threads(1)
    rates: dict[str, list[float]] = {"ours": [], "loop": [], "prepare": []}
    reencode(paths[0]), _loop(paths[0])  # what is loaded at first use is not measured
    for repeat in range(repeats):
        for name, convert in (("ours", reencode), ("loop", _loop)):
            begin = time.process_time()
            for path in paths:
                convert(path)
            rates[name].append(len(paths) / (time.process_time() - begin))
        begin = time.process_time()
        prepare("web_capfilt", raw, directory / f"shards-{repeat}", progress=False)
        rates["prepare"].append(len(paths) / (time.process_time() - begin))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "images_per_second_per_core": medians,
        "ratio_to_loop": medians["ours"] / medians["loop"],
        "ratio_of_prepare_to_loop": medians["prepare"] / medians["loop"],
    }


def _loop(path: Path) -> bytes:
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    scale = 288 / min(upright.size)
    size = (round(upright.width * scale), round(upright.height * scale))
    buffer = io.BytesIO()
    upright.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def reading(directory: Path, workers: int, repeats: int) -> dict[str, Any]:
    """Samples per second of the three ways to read the same images."""
    records = list(read_records(directory / "shards-0"))
    _write_loose(directory / "loose", [record.images[0] for record in records])
    batches = max(8 * WARM_BATCHES, 2 * len(records) // BATCH)
    _tokenizer(directory)  # made once, not measured
    ways: dict[str, Callable[[], Iterator[int]]] = {
        "ours": functools.partial(_ours, directory, workers),
        "loose files": functools.partial(_loose, directory / "loose", workers),
    }
    if importlib.util.find_spec("webdataset") is None:
        print("webdataset is not installed, so it is left out", file=sys.stderr)
    else:
        ways["webdataset"] = functools.partial(_webdataset, directory / "loose", workers)
    wall: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            found = _timed(way(), batches)
            wall[name].append(found[0])
            processor[name].append(found[1])
    medians = {name: statistics.median(values) for name, values in wall.items()}
    per_core = {name: statistics.median(values) for name, values in processor.items()}
    others = [name for name in ways if name != "ours"]
    return {
        "workers": workers,
        "samples_per_repeat": batches * BATCH,
        "samples_per_second": medians,
        "samples_per_processor_second": per_core,
        "ratio_to_best": medians["ours"] / max(medians[name] for name in others),
        "ratio_per_core_to_best": per_core["ours"] / max(per_core[name] for name in others),
    }


def _timed(batches: Iterator[int], count: int) -> tuple[float, float]:
    """Samples per second of wall time after the first batches; per processor second of all."""
    for _ in range(WARM_BATCHES):
        next(batches)
    begin, used = time.perf_counter(), _processor_seconds()
    samples = sum(next(batches) for _ in range(count))
    return samples / (time.perf_counter() - begin), samples / (_processor_seconds() - used)


def _processor_seconds() -> float:
    """Of this process and those it has started, as far as they live."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(used.user + used.system for used in times)


def _recipe(directory: Path, workers: int) -> Recipe:
    mixture = f"[{{dataset: web_capfilt, path: {directory / 'shards-0'}}}]"
    return load_recipe(
        "toy",
        [
            f"output={directory / 'run'}",
            f"data.mixture={mixture}",
            f"data.image_size={SIZE}",
            "data.augmentation=crop_flip",
            f"data.workers={workers}",
            f"training.global_batch={BATCH}",
            f"training.micro_batch={BATCH}",
        ],
    )


@functools.cache
def _tokenizer(directory: Path) -> Any:
    from transformers import InstructBlipProcessor

    from ibtrain.data.toy.tokenizers import write_processor
    from ibtrain.tokenization import InstructionTokenizer

    texts = {
        text for record in read_records(directory / "shards-0") for text in record.instructions
    }
    letters = " ".join("abcdefghijklmnopqrstuvwxyz0123456789.,:?!")
    corpus = directory / "corpus.txt"
    corpus.write_text("\n".join([*sorted(texts), letters] * 20))
    write_processor(corpus, directory / "processor", image_size=SIZE, num_query_tokens=32)
    processor = InstructBlipProcessor.from_pretrained(directory / "processor")
    return InstructionTokenizer(processor.tokenizer, processor.qformer_tokenizer)


def _ours(directory: Path, workers: int) -> Iterator[int]:
    from ibtrain.data.mixture.loader import MixtureLoader
    from ibtrain.data.mixture.shares import resolve_mixture

    recipe = _recipe(directory, workers)
    mixture = resolve_mixture(recipe.data, BATCH)
    loader = MixtureLoader(
        recipe,
        mixture,
        _tokenizer(directory),
        32,
        rank=0,
        world=1,
        cache=directory / "cache",
    )
    try:
        for micro_batches in loader:
            assert micro_batches[0].pixels_ICHW.shape[1:] == (3, SIZE, SIZE)
            yield sum(len(batch) for batch in micro_batches)
    finally:
        loader.close()


def _write_loose(directory: Path, images: Iterable[bytes]) -> None:
    """The images as files, and in tar files of 200."""
    directory.mkdir()
    images = list(images)
    for number, data in enumerate(images):
        (directory / f"{number:06}.jpg").write_bytes(data)
    for first in range(0, len(images), 200):
        with tarfile.open(directory / f"{first:06}.tar", "w") as archive:
            for number in range(first, min(first + 200, len(images))):
                archive.add(directory / f"{number:06}.jpg", f"{number:06}.jpg")


def _transform() -> Callable[[Image.Image], torch.Tensor]:
    from torchvision import transforms

    chain: Callable[[Image.Image], torch.Tensor] = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                SIZE, scale=(0.5, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    return chain


class _Files(torch.utils.data.Dataset[torch.Tensor]):
    """Loose files as people read them."""

    def __init__(self, directory: Path) -> None:
        self._paths = sorted(directory.glob("*.jpg"))
        self._transform = _transform()

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._transform(Image.open(self._paths[index]).convert("RGB"))


def _loose(directory: Path, workers: int) -> Iterator[int]:
    files = _Files(directory)
    # Many epochs in one, so that none of them has to start its workers.
    sampler = torch.utils.data.RandomSampler(files, replacement=True, num_samples=10**6)
    loader = torch.utils.data.DataLoader(
        files, batch_size=BATCH, sampler=sampler, num_workers=workers
    )
    for batch in loader:
        yield len(batch)


def _webdataset(directory: Path, workers: int) -> Iterator[int]:
    import webdataset

    transform = _transform()
    archives = [str(path) for path in sorted(directory.glob("*.tar"))]
    samples = (
        webdataset.WebDataset(archives, resampled=True, shardshuffle=False)
        .shuffle(200)
        .decode("pil")
        .to_tuple("jpg")
        .map_tuple(transform)
        .batched(BATCH)
    )
    for (batch,) in webdataset.WebLoader(samples, batch_size=None, num_workers=workers):
        yield len(batch)


def mixture_start(directory: Path) -> dict[str, Any]:
    """Seconds and memory until the order of the first epoch is there, in a process of its own."""
    for name, samples in HELD_IN.items():
        _write_index(directory / name, samples)
    begin = time.perf_counter()
    child = subprocess.run(
        [sys.executable, __file__, "--child", str(directory)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, Any] = json.loads(child.stdout)
    return found | {"seconds_with_imports": round(time.perf_counter() - begin, 2)}


def _write_index(directory: Path, samples: int) -> None:
    """An index as `ibtrain data prepare` writes it, and empty files of the sizes that it names."""
    from ibtrain.data.shards.writer import ShardWriter, encode_sample

    directory.mkdir()
    writer = ShardWriter(directory)
    columns = {
        "answers": [{"text": "a", "weight": 1.0}],
        "dataset": directory.name,
        "details": {},
        "form": "captioning",
        "id": "0",
        "image": bytes(1000),
        "image_sizes": [1000],
        "instructions": ["a photo of"],
        "plain": "",
        "task": "captioning",
    }
    writer.write(encode_sample(columns))
    writer.finish()
    pattern = writer.entries[0]
    (directory / pattern["zip_data"]["basename"]).unlink()
    entries = []
    for number, first in enumerate(range(0, samples, SAMPLES_PER_SHARD)):
        count = min(SAMPLES_PER_SHARD, samples - first)
        name = f"shard.{number:05}.mds"
        sizes = {"raw_data": 35_000 * count, "zip_data": 34_800 * count}
        entry = pattern | {"samples": count}
        for key, size in sizes.items():
            suffix = ".zstd" if key == "zip_data" else ""
            entry[key] = pattern[key] | {"basename": name + suffix, "bytes": size}
        with (directory / f"{name}.zstd").open("wb") as file:
            file.truncate(sizes["zip_data"])  # a hole: no disk is used
        entries.append(entry)
    (directory / "index.json").write_text(json.dumps({"version": 2, "shards": entries}))


def _start_mixture(directory: Path) -> dict[str, Any]:
    from ibtrain.data.mixture.fingerprint import order_fingerprint
    from ibtrain.data.mixture.order import epoch_order
    from ibtrain.data.mixture.shares import resolve_mixture

    mixture = ", ".join(f"{{dataset: {name}, path: {directory / name}}}" for name in HELD_IN)
    recipe = load_recipe(
        "toy",
        [
            f"data.mixture=[{mixture}]",
            "data.epoch_samples=7680000",  # 60,000 steps of 128
            "training.global_batch=128",
        ],
    )
    begin, used = time.perf_counter(), time.process_time()
    resolved = resolve_mixture(recipe.data, 128)
    fingerprint_of = order_fingerprint(recipe, resolved)
    order = epoch_order(resolved.order_strata(), 0, seed=0, global_batch=128)
    seconds, used = time.perf_counter() - begin, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "samples": sum(dataset.size for dataset in resolved.datasets),
        "shards": sum(len(dataset.index.shards) for dataset in resolved.datasets),
        "steps": len(order.part),
        "fingerprinted": bool(fingerprint_of),
        "seconds": round(seconds, 2),
        "processor_seconds": round(used, 2),
        "peak_gibibytes": round(peak / 2**20, 2),
    }


def _table(document: dict[str, Any]) -> str:
    lines = [f"{document['date']}  {document['machine']}  torch {document['torch']}"]
    if "mixture_start" in document:
        found = document["mixture_start"]
        lines.append(
            f"mixture of {found['samples']:,} samples in {found['shards']:,} shards: first order "
            f"after {found['seconds']} s ({found['processor_seconds']} s of processor time, "
            f"{found['seconds_with_imports']} s with imports), "
            f"at most {found['peak_gibibytes']} GiB"
        )
        return "\n".join(lines)
    made, read = document["conversion"], document["reading"]
    images = document["images"]
    lines.append(f"{images['count']} images of {images['mean_bytes'] / 1000:.0f} KB on average")
    lines.append("conversion, images per second and core")
    for name, rate in made["images_per_second_per_core"].items():
        lines.append(f"  {name:12} {rate:8.1f}")
    lines.append(
        f"  ours / loop {made['ratio_to_loop']:.2f}, "
        f"prepare / loop {made['ratio_of_prepare_to_loop']:.2f}"
    )
    lines.append(f"reading, {read['workers']} workers: samples per second, and per core and second")
    for name, rate in read["samples_per_second"].items():
        lines.append(f"  {name:12} {rate:8.1f} {read['samples_per_processor_second'][name]:8.1f}")
    lines.append(
        f"  ours / best other {read['ratio_to_best']:.2f}, "
        f"per core {read['ratio_per_core_to_best']:.2f}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
