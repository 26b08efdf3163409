"""The command line: verbs that parse, call and print.

Human text goes to stdout, progress and warnings to stderr; with --json stdout is one JSON document.
Exit codes: 0 success, 1 the job failed, 2 the request was wrong, 3 interrupted after a saved
checkpoint.
"""

import argparse
import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SUCCESS, FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns its exit code."""
    parsed = _parse(arguments)
    _show_messages(logging.INFO if _rank() == 0 and not parsed.json else logging.WARNING)
    try:
        return int(parsed.run(parsed))
    except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        _complain(error)
        return WRONG_REQUEST
    except (RuntimeError, OSError) as error:
        _complain(error)
        return FAILED
    except KeyboardInterrupt:
        _complain("stopped" + " before a checkpoint was saved" * (parsed.verb == "train"))
        return FAILED


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command; `key=value` may stand before options and after them."""
    parser = _parser()
    parsed, others = parser.parse_known_args(arguments)
    overrides = [other for other in others if "=" in other and not other.startswith("-")]
    if len(overrides) < len(others) or (others and "overrides" not in parsed):
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    if overrides:
        parsed.overrides = [*parsed.overrides, *overrides]
    return parsed


def _show_messages(level: int) -> None:
    """Our own messages to stderr, whatever the libraries have done to the root logger."""
    logger = logging.getLogger("ibtrain")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _complain(error: BaseException | str) -> None:
    if _rank() and isinstance(error, BaseException) and _told_by_rank_zero(error):
        return
    where = f"[rank {_rank()}] " if _rank() else ""
    print(f"{where}ibtrain: {error}", file=sys.stderr)


def _told_by_rank_zero(error: BaseException) -> bool:
    from ibtrain.distributed.ranks import (
        is_shared,  # what the other ranks of a training have loaded
    )

    return is_shared(error)


def _say(parsed: argparse.Namespace, document: Any, text: str) -> int:
    """Prints the JSON document or the text for people."""
    print(json.dumps(document, indent=2) if parsed.json else text)
    return SUCCESS


def _parser() -> argparse.ArgumentParser:
    from ibtrain import __version__

    parser = argparse.ArgumentParser(
        prog="ibtrain", description="Instruction-tune InstructBLIP: data, training, evaluation."
    )
    parser.add_argument("--version", action="version", version=f"ibtrain {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_recipes(verbs)
    _add_check(verbs)
    _add_data(verbs)
    _add_plan(verbs)
    _add_train(verbs)
    _add_ask(verbs)
    _add_evaluate(verbs)
    _add_export(verbs)
    return parser


def _verb(verbs: Any, name: str, run: Any, help_text: str) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=help_text, description=help_text)
    verb.add_argument("--json", action="store_true", help="print one JSON document")
    verb.set_defaults(run=run)
    return verb


def _add_recipes(verbs: Any) -> None:
    verb = _verb(verbs, "recipes", _recipes, "list, print or copy the shipped recipes")
    verb.add_argument("action", nargs="?", choices=["show", "cp"])
    verb.add_argument("name", nargs="?", metavar="NAME")
    verb.add_argument("file", nargs="?", type=Path, metavar="FILE")


def _recipes(parsed: argparse.Namespace) -> int:
    from ibtrain.config import recipe_path, shipped_recipes

    if parsed.action is None:
        names = list(shipped_recipes())
        return _say(parsed, {"recipes": names}, "\n".join(names))
    if parsed.name is None or (parsed.action == "cp") != (parsed.file is not None):
        raise ValueError("usage: ibtrain recipes [show NAME | cp NAME FILE]")
    path = recipe_path(parsed.name)
    if parsed.action == "show":
        return _say(parsed, {"name": parsed.name, "yaml": path.read_text()}, path.read_text())
    if parsed.file.exists():
        raise FileExistsError(f"{parsed.file} exists; name a new file or remove it")
    shutil.copyfile(path, parsed.file)
    return _say(parsed, {"file": str(parsed.file)}, f"copied to {parsed.file}")


def _add_check(verbs: Any) -> None:
    verb = _verb(verbs, "check", _check, "what this machine has and lacks, and for a recipe")
    verb.add_argument("recipe", nargs="?", metavar="RECIPE")
    verb.add_argument("overrides", nargs="*", metavar="key=value")


def _check(parsed: argparse.Namespace) -> int:
    from dataclasses import asdict

    from ibtrain.check.check import check, table
    from ibtrain.config import load_recipe

    recipe = None if parsed.recipe is None else load_recipe(parsed.recipe, parsed.overrides)
    findings = check(recipe)
    well = all(finding.status != "MISS" for finding in findings)
    document = {"findings": [asdict(finding) for finding in findings], "ok": well}
    _say(parsed, document, table(findings, shutil.get_terminal_size().columns))
    return SUCCESS if well else FAILED


def _add_data(verbs: Any) -> None:
    data = verbs.add_parser("data", help="raw datasets to shards, and what is in them")
    nested = data.add_subparsers(dest="data_verb", required=True, metavar="VERB")
    _verb(nested, "catalog", _catalog, "the datasets: task, role, files, where to get them, metric")
    toy = _verb(nested, "toy", _toy, "write the toy world in the official file layouts")
    toy.add_argument("directory", type=Path, metavar="DIR")
    toy.add_argument("--seed", type=int, default=0)
    toy.add_argument("--train-images", type=int, default=3000, metavar="N")
    toy.add_argument("--test-images", type=int, default=300, metavar="N")
    toy.add_argument("--no-videos", action="store_true", help="leave the video datasets out")
    prepare = _verb(nested, "prepare", _prepare, "raw files to shards")
    prepare.add_argument("dataset", metavar="DATASET")
    prepare.add_argument("--raw", type=Path, required=True, metavar="DIR")
    prepare.add_argument("--out", type=Path, required=True, metavar="DIR")
    prepare.add_argument("--split")
    prepare.add_argument("--workers", type=int, default=1, metavar="N", help="processes")
    prepare.add_argument(
        "--part",
        type=_part,
        metavar="i/n",
        help="convert the i-th of n parts (1 to n); the last one to finish merges them",
    )
    prepare.add_argument(
        "--short-side",
        type=int,
        default=288,
        metavar="PX",
        help="larger images are reduced to it (default 288)",
    )
    prepare.add_argument("--keep-original", action="store_true", help="never reduce images")
    prepare.add_argument(
        "--frames", type=int, default=4, metavar="N", help="of a video (default 4)"
    )
    prepare.add_argument(
        "--budget",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="of bad annotations, above which it fails (default 0.01)",
    )
    verify = _verb(nested, "verify", _verify, "hash and decode every shard, record and image")
    verify.add_argument("directory", type=Path, metavar="DIR")
    verify.add_argument(
        "--repair-from", metavar="DIR_OR_URL", help="replace what differs by this other copy's"
    )
    verify.add_argument("--workers", type=int, default=1, metavar="N")
    mixture = _verb(nested, "mixture", _mixture, "a recipe's mixture: size, weight and share")
    mixture.add_argument("recipe", metavar="RECIPE")
    mixture.add_argument("overrides", nargs="*", metavar="key=value")
    mixture.add_argument(
        "--preview", type=Path, metavar="FILE.html", help="write a page of samples as drawn"
    )
    mixture.add_argument(
        "--samples", type=int, default=6, metavar="N", help="of each dataset on the page (6)"
    )
    mixture.add_argument(
        "--seed", type=int, metavar="N", help="of the page's samples (default: the recipe's)"
    )


def _catalog(parsed: argparse.Namespace) -> int:
    from ibtrain.data.catalog import entries

    document = [
        entry.model_dump(mode="json")
        | {"files": entry.files, "evaluation_prompt": entry.evaluation_prompt}
        for entry in entries()
    ]
    lines = []
    for entry in entries():
        sizes = (
            f"{name} {split.size:,}" if split.size else name for name, split in entry.splits.items()
        )
        files = " | ".join(" + ".join(names) for names in next(iter(entry.splits.values())).files)
        lines += [
            f"{entry.name}: {entry.task}, {entry.role.replace('_', ' ')}, {entry.metric}",
            f"    splits  {', '.join(sizes)}",
            f"    files   {files}",
            f"    from    {entry.source}",
        ]
    return _say(parsed, document, "\n".join(lines))


def _toy(parsed: argparse.Namespace) -> int:
    from ibtrain.data.toy import write_toy

    counts = write_toy(
        parsed.directory,
        seed=parsed.seed,
        train_images=parsed.train_images,
        test_images=parsed.test_images,
        videos=not parsed.no_videos,
    )
    lines = [f"  {name:24} {count:>7,}" for name, count in counts.items()]
    return _say(parsed, counts, f"toy world in {parsed.directory}\n" + "\n".join(lines))


def _part(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isascii() and index.isdigit() and count.isascii() and count.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form i/n, as in 3/8")
    return int(index), int(count)


def _prepare(parsed: argparse.Namespace) -> int:
    from dataclasses import asdict

    from ibtrain.data.preparation.prepare import prepare

    report = prepare(
        parsed.dataset,
        parsed.raw,
        parsed.out,
        split=parsed.split,
        workers=parsed.workers,
        portion=parsed.part,
        progress=sys.stderr.isatty(),
        budget=parsed.budget,
        short_side=parsed.short_side,
        keep_original=parsed.keep_original,
        frames=parsed.frames,
    )
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in report.dropped.items())
    document = asdict(report) | {
        "dropped": sum(report.dropped.values()),
        "dropped_by_reason": report.dropped,
    }
    text = (
        f"{report.dataset}: {report.written:,} records in {report.shards} shards at {parsed.out}; "
        f"dropped {dropped or 'none'}; {report.quarantined:,} quarantined"
    )
    if not report.complete:
        text = (
            f"{report.dataset}: {report.written:,} records of this part are written, "
            f"{report.quarantined:,} quarantined; other parts are still to come"
        )
    return _say(parsed, document, text)


def _verify(parsed: argparse.Namespace) -> int:
    from dataclasses import asdict

    from ibtrain.data.shards.repair import repair
    from ibtrain.data.shards.verify import verify

    shown = {"workers": parsed.workers, "progress": sys.stderr.isatty()}
    report = verify(parsed.directory, **shown)
    replaced: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    if parsed.repair_from is not None and report.bad:
        repaired = repair(parsed.directory, parsed.repair_from, report, **shown)
        report, replaced, refused = repaired.after, repaired.replaced, repaired.refused
    document = {
        "records": report.records,
        "bad": [asdict(problem) for problem in report.bad],
        "leftovers": report.leftovers,
        "replaced": replaced,
        "not_replaced": refused,
    }
    lines = [f"replaced {name}" for name in replaced]
    lines += [f"not replaced: {reason}" for reason in refused]
    lines += [f"bad {problem}" for problem in report.bad]
    lines += [
        f"left over {name} (nothing reads it; it may be removed)" for name in report.leftovers
    ]
    lines.append(f"{parsed.directory}: {report.records:,} good records, {len(report.bad)} problems")
    if report.bad and parsed.repair_from is None:
        lines.append("to replace what differs: --repair-from another copy of the directory")
    _say(parsed, document, "\n".join(lines))
    return FAILED if report.bad else SUCCESS


def _mixture(parsed: argparse.Namespace) -> int:
    from ibtrain.config import load_recipe
    from ibtrain.data.mixture.shares import resolve_mixture

    recipe = load_recipe(parsed.recipe, parsed.overrides)
    mixture = resolve_mixture(recipe.data, recipe.training.global_batch)
    rows = [
        {
            "name": dataset.name,
            "size": dataset.size,
            "weight": dataset.weight,
            "share": dataset.share,
            "samples_per_epoch": dataset.samples_per_epoch,
        }
        for dataset in mixture.datasets
    ]
    lines = [f"{'dataset':20} {'size':>10} {'share':>8} {'samples per epoch':>18} {'epochs':>7}"]
    lines += [
        f"{dataset.name:20} {dataset.size:>10,} {dataset.share:>8.2%} "
        f"{dataset.samples_per_epoch:>18,.1f} {dataset.samples_per_epoch / dataset.size:>7.2f}"
        for dataset in mixture.datasets
    ]
    document: dict[str, Any] = {"datasets": rows}
    if parsed.preview is not None:
        from ibtrain.data.mixture.preview import write_preview

        write_preview(parsed.preview, recipe, mixture, parsed.samples, parsed.seed)
        document["preview"] = str(parsed.preview)
        lines.append(f"samples to look at: {parsed.preview}")
    return _say(parsed, document, "\n".join(lines))


def _add_plan(verbs: Any) -> None:
    verb = _verb(verbs, "plan", _plan, "memory, time, MFU and traffic of each sharding choice")
    verb.add_argument("recipe", metavar="RECIPE")
    verb.add_argument("overrides", nargs="*", metavar="key=value")
    verb.add_argument("--nodes", type=int, default=1, metavar="N")
    verb.add_argument("--gpus-per-node", type=int, default=8, metavar="G")
    verb.add_argument("--gpu", required=True, metavar="NAME", help="h100, a100-40g, ...")
    verb.add_argument(
        "--network",
        type=float,
        metavar="GB/S",
        help="into a node, all its adapters together (default: as usual for the GPU)",
    )
    verb.add_argument(
        "--instruction-tokens", type=int, metavar="N", help="of a typical sample (default 27)"
    )
    verb.add_argument(
        "--answer-tokens", type=int, metavar="N", help="of a typical sample (default 16)"
    )


def _plan(parsed: argparse.Namespace) -> int:
    from dataclasses import asdict, replace

    import ibtrain.torchvision_mend  # before transformers' own models are imported
    from ibtrain.config import load_recipe
    from ibtrain.planning.devices import device_named
    from ibtrain.planning.plan import TYPICAL, Cluster, make_plan
    from ibtrain.planning.report import describe

    assert ibtrain.torchvision_mend
    recipe = load_recipe(parsed.recipe, parsed.overrides)
    network = None if parsed.network is None else 1e9 * parsed.network
    cluster = Cluster(parsed.nodes, parsed.gpus_per_node, device_named(parsed.gpu), network)
    given = {"instruction": parsed.instruction_tokens, "answer": parsed.answer_tokens}
    typical = replace(TYPICAL, **{key: value for key, value in given.items() if value is not None})
    plan = make_plan(recipe, cluster, typical)
    _say(parsed, asdict(plan), describe(plan))
    return SUCCESS if plan.chosen else FAILED


def _add_train(verbs: Any) -> None:
    verb = _verb(verbs, "train", _train, "train a recipe, from the beginning or where it stopped")
    verb.add_argument("recipe", metavar="RECIPE")
    verb.add_argument("overrides", nargs="*", metavar="key=value")


def _train(parsed: argparse.Namespace) -> int:
    from ibtrain.config import load_recipe

    recipe = load_recipe(parsed.recipe, parsed.overrides)
    from ibtrain.training.loop import train

    result = train(recipe)
    if _rank() == 0:
        state = "interrupted after" if result.interrupted else "done:"
        _say(
            parsed,
            {"run": str(result.run), "step": result.step, "interrupted": result.interrupted},
            f"{state} step {result.step}, run directory {result.run}",
        )
    return INTERRUPTED if result.interrupted else SUCCESS


def _add_ask(verbs: Any) -> None:
    verb = _verb(verbs, "ask", _ask, "generate an answer")
    verb.add_argument("model", type=Path, metavar="MODEL")
    verb.add_argument("--image", type=Path, action="append", required=True, metavar="F")
    verb.add_argument("--prompt", required=True, metavar="TEXT")
    verb.add_argument("--beams", type=int, default=5)
    verb.add_argument("--max-new-tokens", type=int, default=256)
    verb.add_argument("--min-new-tokens", type=int, default=1)
    verb.add_argument("--repetition-penalty", type=float, default=1.5)
    verb.add_argument("--length-penalty", type=float, default=1.0)
    verb.add_argument("--sample", action="store_true")
    verb.add_argument("--temperature", type=float, default=1.0)
    verb.add_argument("--top-p", type=float, default=0.9)
    verb.add_argument("--seed", type=int, default=0)


def _ask(parsed: argparse.Namespace) -> int:
    from ibtrain.evaluation.decoding import DecodingSettings, generate
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
    return _say(parsed, {"answer": answer}, answer)


def _picture(file: Path) -> bytes:
    from PIL import Image, UnidentifiedImageError

    if not file.is_file():
        raise FileNotFoundError(f"the image {file} is not there; give --image a picture")
    try:
        with Image.open(file):
            return file.read_bytes()
    except UnidentifiedImageError as error:
        raise ValueError(f"{file} is not a picture; give --image one") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{file} is too large a picture ({error}); reduce it") from error


def _add_evaluate(verbs: Any) -> None:
    verb = _verb(verbs, "evaluate", _evaluate, "score a model on prepared benchmarks")
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
    )
    lines = [
        f"{name:24} {row['metric']:12} {100 * row['value']:6.2f}  "
        f"[{100 * row['interval'][0]:.2f}, {100 * row['interval'][1]:.2f}]  n={row['n']}"
        for name, row in results["benchmarks"].items()
    ]
    return _say(parsed, results, "\n".join([*lines, f"written to {parsed.out}"]))


def _add_export(verbs: Any) -> None:
    verb = _verb(verbs, "export", _export, "write a run in a format that other programs load")
    verb.add_argument("model", type=Path, metavar="RUN_OR_STEP")
    verb.add_argument("--to", choices=["hf", "peft", "lavis"], required=True)
    verb.add_argument("--out", type=Path, required=True, metavar="DIR")
    verb.add_argument(
        "--keep-adapter", action="store_true", help="hf: adapters beside the weights, not merged"
    )
    verb.add_argument(
        "--whole", action="store_true", help="lavis: every weight, not only what was trained"
    )


def _export(parsed: argparse.Namespace) -> int:
    from ibtrain.export import export

    report = export(
        parsed.model,
        parsed.out,
        parsed.to,
        keep_adapter=parsed.keep_adapter,
        whole=parsed.whole,
    )
    document = {"directory": str(report.directory), "proof": report.proof}
    return _say(parsed, document, report.sentence())
