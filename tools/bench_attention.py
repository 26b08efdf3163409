"""How fast attention and the elementwise kernels are at this model family's shapes, and how near to
what the card can do.

    python tools/bench_attention.py --out DIR [--dtype bf16|fp16] [--minutes 8] [--quick]
                                    [--only WORDS]

Needs torch and triton (and matplotlib for the picture). Writes DIR/attention.json, attention.md and
attention.png, after every shape anew, so that a run cut short leaves what it has.

contenders  triton, torch_varlen, flash, sdpa: ibtrain's backends, through `varlen_attention` with
            IBTRAIN_ATTENTION set, on packed rows; * marks the one that the dispatch chooses.
            sdpa-flash, sdpa-efficient, sdpa-math: torch's scaled_dot_product_attention as a padded
            implementation calls it: rows padded and mask made beforehand, outside the time.
            sdpa-flash takes no mask: it runs where all lengths are equal, or where padding stands
            behind a causal sequence. compiled: the padded computation written out, torch.compile'd.
right first each result is first compared with fp64, by ||error|| / ||reference||. With dropout,
            Triton's is computed again exactly, from the seed; the others' must be as far from the
            undropped result as such dropout is, and right without it.
time        CUDA events, median; the L2 cache is overwritten before each run. The device is held
            busy while a run is enqueued, so that it is the device's time and not Python's; "host"
            is what enqueueing takes. Forward alone: without gradients, for elementwise with them.
work        FLOPs of the tokens themselves, whoever pads: 4 * head width for each pair of query and
            key that see each other, 2.5 times as much backward. Bytes: each tensor in or out once.
limit       the larger of FLOPs / the rate of a large matmul and bytes / the bandwidth of a large
            copy, both measured at the start; "of limit" is that time over the time taken.

attention.json: date, arguments, commit, device, dtype, seed, hardware, versions, limits, notes,
rows (see `Row`), choices (the dispatch's, and why), left_out, and verdicts (see `Verdict`).

Exit code 1 where a result is wrong or a backend of ibtrain fails; a missed target is none. Without
a GPU it runs the same code on small shapes on the CPU, and says so.
"""

import argparse
import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, installed or not

import torch

from attention_bench.bench import Bench
from attention_bench.machine import GIT, hardware, told_by, versions
from attention_bench.page import HEADS, aligned, picture, summary, table, write
from attention_bench.rows import verdicts
from attention_bench.shapes import PACKED_ROWS, SEED, Operation, Shape, on_cpu, operations, shapes
from ibtrain.kernels.backends import ENVIRONMENT, Backend
from ibtrain.kernels.triton_support import interpreted

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
NO_GPU = (
    "There is no GPU here: Triton's kernels, torch_varlen, flash, sdpa-efficient and all targets "
    "cannot be measured. Below are small shapes on the CPU, to show that the script runs; "
    "their times say nothing about a GPU."
)


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints, writes, and returns the exit code."""
    parser = _parser()
    parsed = parser.parse_args(arguments)
    asked = " ".join(sys.argv[1:] if arguments is None else arguments)
    os.environ.pop(ENVIRONMENT, None)
    warnings.filterwarnings("ignore")  # SDPA warns of every flavour that refuses
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cuda = device.type == "cuda"
    torch.manual_seed(SEED)
    if not any(parsed.only.lower() in each.name.lower() for each in (*shapes(), *operations())):
        parser.error(f"no shape's name has --only {parsed.only!r} in it")
    minutes = parsed.minutes if cuda else min(0.9, parsed.minutes)
    bench = Bench(device, DTYPES[parsed.dtype], minutes)
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "arguments": asked.replace(str(parsed.out), "DIR") if parsed.out else asked,
        "commit": parsed.commit or told_by(*GIT),
        "device": device.type,
        "dtype": parsed.dtype,
        "seed": SEED,
        "hardware": hardware(device),
        "versions": versions(),
        "limits": {
            "matmul_tflops": bench.matmul_flops / 1e12,
            "copy_gigabytes_per_second": bench.copy_bytes / 1e9,
        },
        "notes": [] if cuda else [NO_GPU],
    }
    if interpreted():
        report["notes"].append("Triton's kernels run in its interpreter: their times say nothing.")
    for line in summary(report):
        print(line, flush=True)
    for name, job in _jobs(bench, parsed, cuda):
        print(f"... {name}", file=sys.stderr, flush=True)
        job()
        write(report, bench, parsed.out)
    return _conclude(report, bench, parsed.out)


def _jobs(
    bench: Bench, parsed: argparse.Namespace, cuda: bool
) -> Iterator[tuple[str, Callable[[], None]]]:
    """What to do, the essential first: compiling is slow, and comes last."""

    def wanted(each: Shape | Operation) -> bool:
        return (each.quick or not parsed.quick) and parsed.only.lower() in each.name.lower()

    attentions = [each if cuda else on_cpu(each) for each in shapes() if wanted(each)]
    elements = [each for each in operations(PACKED_ROWS if cuda else 256) if wanted(each)]
    for shape in attentions:
        yield shape.name, functools.partial(bench.attention, shape, False)
    for each in elements:
        yield each.name, functools.partial(bench.elementwise, each, False)
    for each in elements:
        yield f"{each.name}, compiled", functools.partial(bench.elementwise, each, True)
    for shape in attentions:
        yield f"{shape.name}, compiled", functools.partial(bench.attention, shape, True)


def _conclude(report: dict[str, Any], bench: Bench, out: Path | None) -> int:
    """Tables, verdicts, what was left out, the picture; the exit code."""
    rows = bench.rows
    for kind in HEADS:
        print("", *aligned(table(rows, kind)), sep="\n")
    print("\nTargets")
    for verdict in verdicts(rows):
        print(*verdict.lines(), sep="\n")
    if report.get("left_out"):
        print(f"Left out: {'; '.join(report['left_out'])}")
    bad = [
        row
        for row in rows
        if row.status == "wrong" or (row.status == "failed" and row.contender in list(Backend))
    ]
    for row in bad:
        print(f"{row.status.upper()}: {row.shape}, {row.contender}, {row.passes}: {row.reason}")
    if out is not None:
        title = f"{report['hardware']['name']}, {report['dtype']}, {report['date']}"
        undrawn = picture(rows, title, out / "attention.png")
        report["notes"] += [undrawn] if undrawn else []
        write(report, bench, out)
        print(undrawn or f"Written to {out}: attention.json, attention.md, attention.png")
    return 1 if bad else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="where the three files go")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--minutes", type=float, default=8, help="when to begin nothing more")
    parser.add_argument("--quick", action="store_true", help="a few telling shapes")
    parser.add_argument("--only", default="", metavar="WORDS", help="shapes whose name has them")
    parser.add_argument("--commit", help="what to call the commit where git cannot be asked")
    return parser


if __name__ == "__main__":
    sys.exit(main())
