"""`ibtrain ask`, `evaluate` and `export`."""

import argparse
import math
from pathlib import Path
from typing import Any

from ibtrain.cli.saying import say, shows_progress, verb_of
from ibtrain.defaults import ASK_BEAMS, ASK_NEW_TOKENS, ASK_REPETITION_PENALTY, SHARD_GIGABYTES


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


def _evaluate(parsed: argparse.Namespace) -> int:
    from ibtrain.evaluation.run import evaluate_benchmarks

    results = evaluate_benchmarks(
        parsed.model,
        parsed.data,
        parsed.benchmark,
        parsed.out,
        batch_size=parsed.batch_size,
        limit=parsed.limit,
        shuffle_images=parsed.shuffle_images,
        progress=shows_progress(parsed),
    )
    lines = [
        f"{name:24} {row['metric']:12} {100 * row['value']:6.2f}  "
        f"[{100 * row['interval'][0]:.2f}, {100 * row['interval'][1]:.2f}]  n={row['n']}"
        for name, row in results["benchmarks"].items()
    ]
    return say(parsed, results, "\n".join([*lines, f"written to {parsed.out}"]))


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
