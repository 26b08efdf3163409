"""Every benchmark of a directory, scored and written down: what `ibtrain evaluate` does."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ibtrain.evaluation.benchmarks import dataset_of, evaluate, metric_of
from ibtrain.evaluation.report import write_results
from ibtrain.pretrained.opening import open_to_answer

logger = logging.getLogger(__name__)
_INDEX = "index.json"


def evaluate_benchmarks(
    model: Path,
    data: Path,
    benchmarks: Sequence[str] | None,
    out: Path,
    *,
    batch_size: int = 32,
    limit: int | None = None,
    shuffle_images: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluates a model and writes results.json, predictions.jsonl and a picture per benchmark.

    Args:
        model: see `ibtrain.pretrained.finding.find_model`.
        data: holds one directory of shards per benchmark, whose name the benchmark goes by.
        benchmarks: those to evaluate; None for every one that has a metric computed here.
        out: where to write.
        batch_size: questions answered at a time.
        limit: only the first so many questions of each.
        shuffle_images: give every question another question's image.
        seed: of the shuffling.
        progress: show a bar on stderr.

    Returns:
        The document of results.json.

    Raises:
        ValueError: when the model, a benchmark or its shards cannot be used.
    """
    directories = find_benchmarks(data, benchmarks)
    opened = open_to_answer(model)
    results = [
        evaluate(
            opened,
            directory,
            batch_size=batch_size,
            limit=limit,
            shuffle_images=shuffle_images,
            seed=seed,
            name=directory.name,
            progress=progress,
        )
        for directory in directories
    ]
    return write_results(results, out)


def find_benchmarks(data: Path, benchmarks: Sequence[str] | None) -> list[Path]:
    """The shard directories to evaluate on.

    Raises:
        ValueError: when a named one is missing or has no metric computed here, or none is found.
    """
    if not data.is_dir():
        raise ValueError(
            f"{data} is not there; `ibtrain data prepare` writes shards to evaluate on"
        )
    found = {path.parent.name: path.parent for path in sorted(data.glob(f"*/{_INDEX}"))}
    if benchmarks is not None:
        for name in benchmarks:
            if name not in found:
                raise ValueError(
                    f"{data} holds no benchmark {name!r}; found: {', '.join(found) or 'none'}"
                )
            metric_of(dataset_of(found[name]))
        return [found[name] for name in dict.fromkeys(benchmarks)]
    usable = []
    for directory in found.values():
        try:
            metric_of(dataset_of(directory))
        except ValueError as error:
            logger.info("%s is left out: %s", directory, error)
        else:
            usable.append(directory)
    if not usable:
        raise ValueError(
            f"{data} holds no benchmark that is scored here; found: {', '.join(found) or 'none'}"
        )
    return usable
