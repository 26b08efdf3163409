"""What a report shows of the data: samples of a run's mixture, and answers of its evaluations."""

import io
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from ibtrain.config import Recipe
from ibtrain.data.mixture.preview import shown_datasets
from ibtrain.data.mixture.preview_page import ShownDataset
from ibtrain.data.mixture.shares import resolve_mixture
from ibtrain.data.shards.remote import local_directory
from ibtrain.files import FileError, read_json
from ibtrain.report.lines import Unread, objects, whole_number
from ibtrain.report.metrics import finite

RESULTS, PREDICTIONS = "results.json", "predictions.jsonl"
MOST_EVALUATIONS = 12
MOST_BENCHMARKS = 40
MOST_ANSWERS = 8
_LARGEST_PICTURE = 32 * 2**20
_PICTURE_WIDTH = 1100


@dataclass(frozen=True)
class Picture:
    """An image of an evaluation, as a JPEG."""

    encoded: bytes
    width: int
    height: int


@dataclass(frozen=True)
class Answer:
    """One answer of a model and those that were accepted."""

    question: str
    prediction: str
    accepted: str
    correct: str


@dataclass(frozen=True)
class Benchmark:
    """One benchmark's score with its interval of confidence, some answers, and its picture."""

    name: str
    metric: str
    value: float | None
    interval: str
    n: str
    answers: tuple[Answer, ...]
    picture: Picture | None


@dataclass(frozen=True)
class Evaluation:
    """One evaluation's directory; `trouble` says why its results cannot be shown."""

    path: Path
    benchmarks: tuple[Benchmark, ...] = ()
    trouble: str = ""
    step: int | None = None
    """Of the model, where the evaluation tells."""


def samples_of(recipe: Recipe, samples: int) -> tuple[list[ShownDataset], str]:
    """Samples of each dataset of the mixture, as training draws them, or why there are none.

    Nothing is fetched from an object store, and shards are unpacked to a directory that is removed.
    """
    entries = recipe.data.mixture
    elsewhere = [
        entry.path
        for entry in entries
        if (directory := local_directory(entry.path)) is None or not directory.is_dir()
    ]
    if elsewhere:
        return [], (
            f"samples are not shown, for the shards at {elsewhere[0]} are not on this machine"
            f"{f' (nor {len(elsewhere) - 1} others)' if len(elsewhere) > 1 else ''}"
        )
    with tempfile.TemporaryDirectory(prefix="ibtrain-report-") as temporary:
        cache = Path(temporary)
        try:
            data = recipe.data.model_copy(update={"cache": cache})
            mixture = resolve_mixture(data, recipe.training.global_batch, cache)
            return shown_datasets(recipe, mixture, samples, cache), ""
        except (ValueError, OSError) as error:
            return [], f"samples are not shown: {error}"


def evaluations_in(run: Path) -> list[Path]:
    """Directories below a run that hold an evaluation's results."""
    found = [*run.glob(f"*/{RESULTS}"), *run.glob(f"*/*/{RESULTS}")]
    return [path.parent for path in sorted(found)][:MOST_EVALUATIONS]


def read_evaluation(path: Path) -> Evaluation:
    """An evaluation as `ibtrain evaluate` wrote it; what is damaged is said."""
    try:
        document = read_json(path / RESULTS, "give a directory that `ibtrain evaluate` wrote")
        rows, model = document.get("benchmarks"), document.get("model")
        if not isinstance(rows, dict):
            return Evaluation(path, trouble=f"{path / RESULTS} names no benchmarks")
        answers = _answers(path / PREDICTIONS)
        shown = islice(rows.items(), MOST_BENCHMARKS)
        return Evaluation(
            path,
            tuple(
                _benchmark(path, name, row, answers.get(name, []))
                for name, row in shown
                if isinstance(row, dict)
            ),
            step=whole_number(model.get("step")) if isinstance(model, dict) else None,
        )
    except (FileError, OSError) as error:
        return Evaluation(path, trouble=str(error))


def _benchmark(path: Path, name: str, row: dict[str, Any], answers: list[Answer]) -> Benchmark:
    interval = row.get("interval")
    bounds = [finite(bound) for bound in interval[:2]] if isinstance(interval, list) else []
    n = finite(row.get("n"))
    return Benchmark(
        name=name,
        metric=str(row.get("metric", "")),
        value=finite(row.get("value")),
        interval=" to ".join(f"{bound:.2%}" for bound in bounds if bound is not None),
        n="" if n is None else f"{n:,.0f}",
        answers=tuple(answers),
        picture=_picture(path / f"{name}.png") if Path(name).name == name else None,
    )


def _answers(path: Path) -> dict[str, list[Answer]]:
    """The first answers of each benchmark."""
    found: dict[str, list[Answer]] = {}
    for line in objects(path, Unread()):
        name = str(line.get("benchmark", ""))
        if name not in found and len(found) >= MOST_BENCHMARKS:
            continue
        own = found.setdefault(name, [])
        if len(own) < MOST_ANSWERS:
            own.append(_answer(line))
    return found


def _answer(line: dict[str, Any]) -> Answer:
    accepted, correct = line.get("answers"), line.get("correct")
    texts = [str(one)[:100] for one in accepted[:10]] if isinstance(accepted, list) else []
    said = {"True": "yes", "False": "no", "None": ""}
    return Answer(
        question=str(line.get("question", ""))[:400],
        prediction=str(line.get("prediction", ""))[:400],
        accepted=" | ".join(texts),
        correct=said.get(str(correct), str(correct)[:20]),
    )


def _picture(file: Path) -> Picture | None:
    """A picture, decoded and encoded anew, so that nothing but pixels reaches the page."""
    if not file.is_file() or file.stat().st_size > _LARGEST_PICTURE:
        return None
    try:
        with Image.open(file, formats=("PNG", "JPEG")) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    image.thumbnail((_PICTURE_WIDTH, 4 * _PICTURE_WIDTH))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return Picture(buffer.getvalue(), image.width, image.height)
