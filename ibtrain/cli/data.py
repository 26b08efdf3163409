"""`ibtrain data`: the catalog, the toy world, shards and what is in them, the mixture."""

import argparse
from pathlib import Path
from typing import Any

from ibtrain.cli.saying import FAILED, SUCCESS, say, shows_progress, verb_of
from ibtrain.defaults import FRAMES, PREVIEW_SAMPLES, QUARANTINE_BUDGET, SHORT_SIDE


def add_data(verbs: Any) -> None:
    """Adds the verb `data`."""
    data = verbs.add_parser("data", help="raw datasets to shards, and what is in them")
    nested = data.add_subparsers(dest="data_verb", required=True, metavar="VERB")
    verb_of(
        nested, "catalog", _catalog, "the datasets: task, role, files, where to get them, metric"
    )
    toy = verb_of(nested, "toy", _toy, "write the toy world in the official file layouts")
    toy.add_argument("directory", type=Path, metavar="DIR")
    toy.add_argument("--seed", type=int, default=0)
    toy.add_argument("--train-images", type=int, default=3000, metavar="N")
    toy.add_argument("--test-images", type=int, default=300, metavar="N")
    toy.add_argument("--no-videos", action="store_true", help="leave the video datasets out")
    describe = verb_of(
        nested, "describe", _describe, "write a first version of your own dataset's YAML"
    )
    describe.add_argument(
        "directory", type=Path, metavar="DIR", help="images with a list in CSV, JSON Lines or JSON"
    )
    describe.add_argument("--name", help="of the dataset (default: the folder's)")
    describe.add_argument(
        "--out", type=Path, metavar="FILE.yaml", help="default: NAME.yaml in this directory"
    )
    prepare = verb_of(nested, "prepare", _prepare, "raw files to shards")
    prepare.add_argument("dataset", metavar="DATASET")
    prepare.add_argument("--raw", type=Path, required=True, metavar="DIR")
    prepare.add_argument("--out", type=Path, required=True, metavar="DIR")
    prepare.add_argument("--split")
    prepare.add_argument("--workers", type=int, default=1, metavar="N", help="processes")
    prepare.add_argument(
        "--part",
        type=_part,
        metavar="i/n",
        help="convert the i-th of n portions (1 to n); the last to finish merges them",
    )
    prepare.add_argument(
        "--short-side",
        type=int,
        default=SHORT_SIDE,
        metavar="PX",
        help="larger images are reduced to it (default %(default)s)",
    )
    prepare.add_argument("--keep-original", action="store_true", help="never reduce images")
    prepare.add_argument(
        "--frames", type=int, default=FRAMES, metavar="N", help="of a video (default %(default)s)"
    )
    prepare.add_argument(
        "--budget",
        type=float,
        default=QUARANTINE_BUDGET,
        metavar="SHARE",
        help="of bad annotations, above which it fails (default %(default)s)",
    )
    verify = verb_of(nested, "verify", _verify, "hash and decode every shard, record and image")
    verify.add_argument("directory", type=Path, metavar="DIR")
    verify.add_argument(
        "--repair-from", metavar="DIR_OR_URL", help="replace what differs by this other copy's"
    )
    verify.add_argument(
        "--rebuild-index", action="store_true", help="make a lost index again from the shards"
    )
    verify.add_argument("--workers", type=int, default=1, metavar="N")
    mixture = verb_of(nested, "mixture", _mixture, "a recipe's mixture: size, weight and share")
    mixture.add_argument("recipe", metavar="RECIPE")
    mixture.add_argument("overrides", nargs="*", metavar="key=value")
    mixture.add_argument(
        "--preview", type=Path, metavar="FILE.html", help="write a page of samples as drawn"
    )
    mixture.add_argument(
        "--samples",
        type=int,
        default=PREVIEW_SAMPLES,
        metavar="N",
        help="of each dataset on the page (default %(default)s)",
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
    return say(parsed, document, "\n".join(lines))


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
    return say(parsed, counts, f"toy world in {parsed.directory}\n" + "\n".join(lines))


def _describe(parsed: argparse.Namespace) -> int:
    from dataclasses import asdict

    from ibtrain.data.describe import describe

    found = describe(parsed.directory, parsed.out, parsed.name)
    columns = ", ".join(f"{what} in {column!r}" for what, column in found.columns.items())
    lines = [
        f"{found.file}: {', '.join(f'{split} in {file}' for split, file in found.splits.items())}; "
        f"{columns}; read by {found.reader}",
        f"tried on the first entries: {found.examples:,} examples, {found.rejected:,} rejected"
        + (f" ({found.first_reason})" if found.first_reason else ""),
        f"look it over, then: ibtrain data prepare {found.file} --raw {parsed.directory} "
        f"--out shards/{found.name}",
    ]
    return say(parsed, asdict(found) | {"file": str(found.file)}, "\n".join(lines))


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
        progress=shows_progress(parsed),
        budget=parsed.budget,
        short_side=parsed.short_side,
        keep_original=parsed.keep_original,
        frames=parsed.frames,
    )
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in report.dropped.items()) or "none"
    bad = f"{report.quarantined:,} quarantined"
    if report.first_bad:
        bad += f" (the first is {report.first_bad}; all are in {parsed.out / 'quarantine.jsonl'})"
    if report.renamed:
        dropped += f"; {report.renamed:,} renamed, as their id came before with other content"
    document = asdict(report) | {
        "dropped": sum(report.dropped.values()),
        "dropped_by_reason": report.dropped,
    }
    text = (
        f"{report.dataset}: {report.written:,} records in {report.shards} shards at {parsed.out}; "
        f"dropped {dropped}; {bad}"
    )
    if not report.complete:
        text = (
            f"{report.dataset}: {report.written:,} records of this portion are written, "
            f"{report.quarantined:,} quarantined; other portions are still to come"
        )
    return say(parsed, document, text)


def _verify(parsed: argparse.Namespace) -> int:
    from dataclasses import asdict

    from ibtrain.data.shards.rebuild import rebuild_index
    from ibtrain.data.shards.repair import repair
    from ibtrain.data.shards.verify import verify

    rebuilt = rebuild_index(parsed.directory) if parsed.rebuild_index else None
    shown = {"workers": parsed.workers, "progress": shows_progress(parsed)}
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
        "rebuilt": rebuilt is not None,
        "replaced": replaced,
        "not_replaced": refused,
    }
    lines = [] if rebuilt is None else [f"index.json is made again of {len(rebuilt.shards)} shards"]
    lines += [f"replaced {name}" for name in replaced]
    lines += [f"not replaced: {reason}" for reason in refused]
    lines += [f"bad {problem}" for problem in report.bad]
    lines += [
        f"left over {name} (nothing reads it; it may be removed)" for name in report.leftovers
    ]
    lines.append(f"{parsed.directory}: {report.records:,} good records, {len(report.bad)} problems")
    if report.bad and parsed.repair_from is None:
        lines.append("to replace what differs: --repair-from another copy of the directory")
    say(parsed, document, "\n".join(lines))
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
    return say(parsed, document, "\n".join(lines))
