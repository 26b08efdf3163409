"""What is left of an evaluation: results.json, predictions.jsonl, and a picture to look at."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ibtrain.evaluation.benchmarks import BenchmarkResult
from ibtrain.evaluation.sheet import picture
from ibtrain.files import write_whole

RESULTS = "results.json"
PREDICTIONS = "predictions.jsonl"
_NOT_SUMMARY = ("predictions", "images", "name")


def write_results(results: Sequence[BenchmarkResult], out: Path) -> dict[str, Any]:
    """Writes results.json, predictions.jsonl and NAME.png for every benchmark with images.

    Args:
        results: at least one; their names differ.
        out: a directory, made where it is missing; files of an earlier evaluation are replaced.

    Returns:
        The document of results.json.

    Raises:
        ValueError: when two results have the same name.
        OSError: when `out` cannot be written.
    """
    names = [result.name for result in results]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two results are called {twice[0]!r}; give them different names")
    out.mkdir(parents=True, exist_ok=True)
    document = {"benchmarks": {result.name: summary(result) for result in results}}
    lines = [
        json.dumps({"benchmark": result.name, **asdict(prediction)}, ensure_ascii=False)
        for result in results
        for prediction in result.predictions
    ]
    write_whole(out / PREDICTIONS, "".join(f"{line}\n" for line in lines))
    for result in results:
        if result.images:
            score = f"{result.name}: {result.value:.1%} {result.metric} of {result.n:,} questions"
            note = ", images shuffled" if result.shuffled_images else ""
            picture(result.predictions, result.images, out / f"{result.name}.png", score + note)
    write_whole(out / RESULTS, json.dumps(document, indent=2) + "\n")
    return document


def summary(result: BenchmarkResult) -> dict[str, Any]:
    """A result as results.json holds it: everything but the single predictions."""
    values = {key: value for key, value in vars(result).items() if key not in _NOT_SUMMARY}
    by_type = {kind: asdict(accuracy) for kind, accuracy in result.by_type.items()}
    plain: dict[str, Any] = json.loads(json.dumps(values | {"by_type": by_type}))
    return plain
