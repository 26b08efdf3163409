"""What is left of an evaluation.

results.json        every score with its interval, protocol, notes and the paper's figures
predictions.jsonl   a line for each answered record, with its value
results.md          the table, for a message or a README
index.html          one page: charts, the paper's figures beside, answers with their images
NAME.png            a sheet of questions and answers
submissions/        predictions in the form that the owners' servers take
answers/            what was answered so far, see store.py
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ibtrain.data.answering import MAIN
from ibtrain.evaluation.metric_base import Score
from ibtrain.evaluation.page import results_page
from ibtrain.evaluation.scoring import Result, is_right, shown, type_of, values_of
from ibtrain.evaluation.sheet import picture
from ibtrain.evaluation.submission import write_submission
from ibtrain.files import write_whole

RESULTS = "results.json"
PREDICTIONS = "predictions.jsonl"
TABLE = "results.md"
PAGE = "index.html"
SUBMISSIONS = "submissions"


def write_results(
    results: Sequence[Result], out: Path, about: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Writes all of the above.

    Args:
        results: at least one; their names differ.
        out: a directory, made where it is missing; files of an earlier evaluation are replaced.
        about: of the model.

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
    document = {
        "benchmarks": {result.name: summary(result) for result in results},
        "model": dict(about or {}),
    }
    lines = [json.dumps(row, ensure_ascii=False) for result in results for row in _rows(result)]
    write_whole(out / PREDICTIONS, "".join(f"{line}\n" for line in lines))
    for result in results:
        write_submission(result, out / SUBMISSIONS)
        if result.images:
            picture(shown(result), result.images, out / f"{result.name}.png", _heading(result))
    write_whole(out / TABLE, table(document))
    write_whole(out / PAGE, results_page(document, results))
    write_whole(out / RESULTS, json.dumps(document, indent=2) + "\n")
    return document


def summary(result: Result) -> dict[str, Any]:
    """A result as results.json holds it: everything but the single predictions."""
    protocol, score = result.protocol, result.score
    by = {key: {kind: _figures(one) for kind, one in own.items()} for key, own in result.by.items()}
    plain: dict[str, Any] = {
        "metric": result.way.metric,
        **(_figures(score) if score else {"value": None, "interval": None, "n": 0}),
        "also": score.also if score else {},
        "by_type": next(iter(by.values()), {}),
        "by": by,
        "best_constant": result.best_constant,
        "best_constant_by_type": result.best_constant_by_type,
        "shuffled_images": result.shuffled_images,
        "partial": result.partial,
        "missing": result.missing,
        "notes": list(result.notes),
        "protocol": _protocol(result),
        "table_1": protocol.table_1 if result.way_name in (MAIN, "ranked") else {},
        "table_3": protocol.table_3_of(result.way_name),
        "outside": [one.model_dump() for one in protocol.outside],
        "about": result.about,
    }
    return plain


def _protocol(result: Result) -> dict[str, Any]:
    """Every value of the protocol with whose word it is."""
    values: dict[str, Any] = {"split": result.protocol.split, "prompts": result.protocol.prompts}
    way = result.way.model_dump(mode="json", exclude={"decoding"}, exclude_none=True)
    if result.way.answering == "generate":
        way |= {
            f"decoding.{key}": value
            for key, value in result.way.decoding.model_dump(mode="json").items()
        }
        way = {key: value for key, value in way.items() if key not in ("length", "prior")}
    marked = {
        key: {"value": value, "source": result.protocol.source_of(result.way_name, key)}
        for key, value in way.items()
        if value != "none"
    }
    top = {
        key: {"value": value, "source": result.protocol.source_of(MAIN, key)}
        for key, value in values.items()
        if value
    }
    return {**top, **marked, "notes": list(result.protocol.notes)}


def _figures(score: Score) -> dict[str, Any]:
    return {"value": score.value, "interval": list(score.interval), "n": score.n}


def _rows(result: Result) -> list[dict[str, Any]]:
    values = values_of(result)
    return [
        {
            "benchmark": result.name,
            **sample.as_json(),
            "answers": list(sample.texts),
            "weights": [answer.weight for answer in sample.answers],
            "question_type": type_of(sample),
            "value": values.get(sample.index),
            "correct": is_right(result.way, values.get(sample.index)),
        }
        for sample in result.samples
    ]


def _heading(result: Result) -> str:
    if result.score is None:
        return f"{result.name}: {len(result.samples):,} answers, not scored"
    note = ", images shuffled" if result.shuffled_images else ""
    return (
        f"{result.name}: {100 * result.score.value:.1f} {result.way.metric} of "
        f"{result.score.n:,}{note}"
    )


def table(document: Mapping[str, Any]) -> str:
    """The results as Markdown: figures times 100, as the paper gives them."""
    lines = [
        "| benchmark | metric | value | 95 % interval | n | InstructBLIP, paper | notes |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in document["benchmarks"].items():
        paper = ", ".join(
            f"{who.removeprefix('InstructBLIP ')} {value}"
            for who, value in row["table_1"].items()
            if who.startswith("InstructBLIP")
        )
        value, interval = "-", "-"
        if row["value"] is not None:
            low, high = (100 * end for end in row["interval"])
            value, interval = f"{100 * row['value']:.2f}", f"{low:.2f} to {high:.2f}"
        also = ", ".join(f"{key} {one:.3g}" for key, one in row["also"].items())
        notes = "; ".join([*([also] if also else []), *row["notes"]]).replace("|", "\\|")
        partial = " (partial)" if row["partial"] else ""
        lines.append(
            f"| {name}{partial} | {row['metric']} | {value} | {interval} | {row['n']:,} | "
            f"{paper or '-'} | {notes or '-'} |"
        )
    return "\n".join(lines) + "\n"
