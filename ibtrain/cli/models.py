"""`ibtrain ask`, `rank`, `evaluate`, `compare` and `export`."""

import argparse
import logging
import math
from pathlib import Path
from typing import Any

from ibtrain.cli.saying import SUCCESS, rank, say, shows_progress, verb_of
from ibtrain.defaults import ASK_BEAMS, ASK_NEW_TOKENS, ASK_REPETITION_PENALTY, SHARD_GIGABYTES

logger = logging.getLogger(__name__)


def add_ask(verbs: Any) -> None:
    """Adds the verb `ask`."""
    verb = verb_of(verbs, "ask", _ask, "generate an answer")
    verb.add_argument("model", type=Path, metavar="MODEL")
    verb.add_argument("--image", type=Path, action="append", required=True, metavar="F")
    verb.add_argument("--prompt", required=True, metavar="TEXT")
    verb.add_argument("--beams", type=int, default=ASK_BEAMS)
    verb.add_argument("--max-new-tokens", type=int, default=ASK_NEW_TOKENS)
    verb.add_argument("--min-new-tokens", type=int, default=1)
    verb.add_argument("--repetition-penalty", type=float, default=ASK_REPETITION_PENALTY)
    verb.add_argument("--length-penalty", type=float, default=1.0)
    verb.add_argument("--sample", action="store_true")
    verb.add_argument("--temperature", type=float, default=1.0)
    verb.add_argument("--top-p", type=float, default=0.9)
    verb.add_argument("--seed", type=int, default=0)


def _ask(parsed: argparse.Namespace) -> int:
    from ibtrain.evaluation.generation import DecodingSettings, generate
    from ibtrain.pretrained.opening import open_to_answer

    settings = DecodingSettings(
        beams=parsed.beams,
        max_new_tokens=parsed.max_new_tokens,
        min_new_tokens=parsed.min_new_tokens,
        repetition_penalty=parsed.repetition_penalty,
        length_penalty=parsed.length_penalty,
        sample=parsed.sample,
        temperature=parsed.temperature,
        top_p=parsed.top_p,
        seed=parsed.seed,
    )
    images = [_picture(file) for file in parsed.image]
    answer = generate(open_to_answer(parsed.model), [images], [parsed.prompt], settings)[0]
    return say(parsed, {"answer": answer}, answer)


def add_rank(verbs: Any) -> None:
    """Adds the verb `rank`."""
    verb = verb_of(verbs, "rank", _rank, "rank candidates by how likely they are the answer")
    verb.add_argument("model", type=Path, metavar="MODEL")
    verb.add_argument("--image", type=Path, action="append", default=[], metavar="F")
    verb.add_argument("--prompt", required=True, metavar="TEXT")
    verb.add_argument(
        "--candidates",
        action="append",
        required=True,
        metavar="FILE_OR_LIST",
        help="one a line, a JSON list, a JSON object of label: texts that stand for it, or a,b,c",
    )
    verb.add_argument(
        "--length", choices=["sum", "tokens", "characters"], default="sum", help="divide sums by"
    )
    verb.add_argument(
        "--prior",
        choices=["none", "image", "prompt"],
        default="none",
        help="subtract what a blank image, or --content-free as the prompt, gives a candidate",
    )
    verb.add_argument("--content-free", default="N/A", metavar="TEXT")


def _rank(parsed: argparse.Namespace) -> int:
    from ibtrain.evaluation.candidates import read_candidates
    from ibtrain.evaluation.ranking import RankingSettings, best_first
    from ibtrain.evaluation.ranking import rank as score
    from ibtrain.pretrained.opening import open_to_answer

    candidates, twice = read_candidates(parsed.candidates)
    for text in twice:
        logger.warning("%r is given more than once; it is scored once", text)
    settings = RankingSettings(parsed.length, parsed.prior, parsed.content_free)
    images = [_picture(file) for file in parsed.image]
    opened = open_to_answer(parsed.model)
    scored = best_first(score(opened, [images], [parsed.prompt], [candidates], settings)[0])
    document = {
        "candidates": [
            {"text": one.text, "logprob": one.logprob, "score": one.score} for one in scored
        ]
    }
    return say(parsed, document, "\n".join(f"{one.score:10.4f}  {one.text}" for one in scored))


def _picture(file: Path) -> bytes:
    from ibtrain.evaluation.pictures import read_picture

    return read_picture(file)


def add_evaluate(verbs: Any) -> None:
    """Adds the verb `evaluate`."""
    verb = verb_of(verbs, "evaluate", _evaluate, "score a model on prepared benchmarks")
    verb.add_argument("model", type=Path, metavar="MODEL")
    verb.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="holds one directory per benchmark"
    )
    verb.add_argument(
        "--benchmark", action="append", metavar="NAME", help="default: every one found in DIR"
    )
    verb.add_argument("--out", type=Path, required=True, metavar="DIR")
    verb.add_argument("--batch-size", type=int, default=32, metavar="N")
    verb.add_argument("--limit", type=int, metavar="N", help="only the first N questions")
    verb.add_argument(
        "--shuffle-images",
        action="store_true",
        help="give every question another question's image, to see what the image is worth",
    )
    verb.add_argument(
        "--greedy", action="store_true", help="one beam, no penalties, whatever the protocol says"
    )
    verb.add_argument(
        "--vocabulary",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="what a benchmark ranks: a file, or shards whose answers are meant",
    )
    verb.add_argument(
        "--protocol",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="a dataset's YAML whose section `evaluation` counts",
    )
    verb.add_argument(
        "--steps", metavar="all|N,N", help="of a run directory: evaluate these steps, not the last"
    )
    verb.add_argument(
        "--mean", action="append", default=[], metavar="NAME=A,B", help="a mean of benchmarks"
    )
    verb.add_argument(
        "--select",
        metavar="MEAN",
        help="with --steps: tell the best step by a mean (of --mean; or all, held_in, held_out)",
    )


def _evaluate(parsed: argparse.Namespace) -> int:
    from ibtrain.evaluation.benchmarks import Options
    from ibtrain.evaluation.run import evaluate_benchmarks
    from ibtrain.evaluation.steps import evaluate_steps

    options = Options(
        batch_size=parsed.batch_size,
        limit=parsed.limit,
        shuffle_images=parsed.shuffle_images,
        greedy=parsed.greedy,
        progress=shows_progress(parsed),
    )
    vocabularies = {name: Path(path) for name, path in _named(parsed, "vocabulary")}
    protocols = {name: Path(path) for name, path in _named(parsed, "protocol")}
    given = (parsed.model, parsed.data, parsed.benchmark, parsed.out, options)
    if parsed.steps is None:
        if parsed.select or parsed.mean:
            raise ValueError("--select and --mean go with --steps: a single step is not chosen")
        results = evaluate_benchmarks(*given, vocabularies=vocabularies, protocols=protocols)
        lines = [_row(name, row) for name, row in results["benchmarks"].items()]
    else:
        means = {name: names.split(",") for name, names in _named(parsed, "mean")}
        results = evaluate_steps(
            *(*given, parsed.steps, means, parsed.select),
            vocabularies=vocabularies,
            protocols=protocols,
        )
        lines = [_step(step) for step in results["steps"]]
        if results["best"] is not None:
            lines.append(f"best by {parsed.select}: step {results['best']}")
    if rank():
        return SUCCESS
    return say(parsed, results, "\n".join([*lines, f"written to {parsed.out}"]))


def _row(name: str, row: dict[str, Any]) -> str:
    if row["value"] is None:
        return f"{name:24} {row['metric']:26} no public answers: predictions are written, no score"
    low, high = (100 * end for end in row["interval"])
    partial = f"  PARTIAL, {row['missing']} missing" if row["partial"] else ""
    figures = f"{100 * row['value']:6.2f}  [{low:.2f}, {high:.2f}]  n={row['n']}"
    return f"{name:24} {row['metric']:26} {figures}{partial}"


def _step(row: dict[str, Any]) -> str:
    shown = row["means"] or row["values"]
    figures = "  ".join(f"{name} {100 * value:.2f}" for name, value in shown.items())
    return f"step {row['step']:8}  {figures}"


def _named(parsed: argparse.Namespace, option: str) -> list[tuple[str, str]]:
    """NAME=VALUE as given."""
    pairs = []
    for given in getattr(parsed, option):
        name, equals, value = given.partition("=")
        if not equals or not name or not value:
            raise ValueError(f"--{option} {given}: give NAME=VALUE")
        pairs.append((name, value))
    return pairs


def add_compare(verbs: Any) -> None:
    """Adds the verb `compare`."""
    verb = verb_of(verbs, "compare", _compare, "paired bootstrap between two evaluations")
    verb.add_argument("a", type=Path, metavar="A", help="the directory of an evaluation")
    verb.add_argument("b", type=Path, metavar="B")


def _compare(parsed: argparse.Namespace) -> int:
    from dataclasses import asdict

    from ibtrain.evaluation.compare import compare

    found = compare(parsed.a, parsed.b)
    document = {"benchmarks": {one.benchmark: asdict(one) for one in found}}
    return say(parsed, document, "\n".join(one.sentence() for one in found))


def add_export(verbs: Any) -> None:
    """Adds the verb `export`."""
    verb = verb_of(verbs, "export", _export, "write a run in a format that other programs load")
    verb.add_argument("model", type=Path, metavar="MODEL", help="a run, a step, an export, a base")
    verb.add_argument("--to", choices=["hf", "peft", "lavis"], required=True)
    verb.add_argument("--out", type=Path, required=True, metavar="DIR")
    verb.add_argument(
        "--keep-adapter", action="store_true", help="hf: adapters beside the weights, not merged"
    )
    verb.add_argument(
        "--whole", action="store_true", help="lavis: every weight, not only what was trained"
    )
    verb.add_argument(
        "--shard-gigabytes",
        type=float,
        default=SHARD_GIGABYTES,
        metavar="N",
        help="hf: the largest file (default %(default)s)",
    )
    verb.add_argument(
        "--evaluation",
        type=Path,
        metavar="DIR",
        help="what `ibtrain evaluate` wrote of the model: its scores stand in the model card",
    )


def _export(parsed: argparse.Namespace) -> int:
    from ibtrain.export import export

    if not 0 < parsed.shard_gigabytes < math.inf:
        raise ValueError(f"--shard-gigabytes is {parsed.shard_gigabytes}; give one above 0")
    report = export(
        parsed.model,
        parsed.out,
        parsed.to,
        keep_adapter=parsed.keep_adapter,
        whole=parsed.whole,
        shard_bytes=int(parsed.shard_gigabytes * 1e9),
        evaluation=parsed.evaluation,
    )
    document = {"directory": str(report.directory), "proof": report.proof}
    return say(parsed, document, report.sentence())
