"""Writes a trained model in a format that other programs load.

    python tools/export_checkpoint.py MODEL --to hf|peft|lavis --out DIR [--json]

MODEL is a run directory, one of its steps, an export, a directory in transformers' InstructBLIP or
BLIP-2 format, or a recipe (its base is meant). `hf`: a directory that transformers opens; `peft`:
the adapters alone, to be put on the base; `lavis`: the trimmed state dict under LAVIS's names.

Exit code 0: written and proven; 1: the job failed (a full disk, a proof that fails); 2: the request
was wrong.
"""

import argparse
import json
import logging
import math
import sys
from pathlib import Path

SUCCESS, FAILED, WRONG_REQUEST = 0, 1, 2


def main(arguments: list[str] | None = None) -> int:
    """Parses, exports, reports; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    # Imported late: --help must not wait for torch.
    from ibtrain.export import export

    try:
        if not 0 < parsed.shard_gigabytes < math.inf:
            raise ValueError(f"--shard-gigabytes is {parsed.shard_gigabytes}; give one above 0")
        report = export(
            parsed.model,
            parsed.out,
            parsed.to,
            keep_adapter=parsed.keep_adapter,
            whole=parsed.whole,
            shard_bytes=int(parsed.shard_gigabytes * 1e9),
        )
    except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        print(f"export_checkpoint: {error}", file=sys.stderr)
        return WRONG_REQUEST
    except (RuntimeError, OSError) as error:
        print(f"export_checkpoint: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("export_checkpoint: stopped; nothing is written", file=sys.stderr)
        return FAILED
    if parsed.json:
        print(json.dumps({"directory": str(report.directory), "proof": report.proof}))
    else:
        print(report.sentence())
    return SUCCESS


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="export_checkpoint.py", description="Write a model in a format others load."
    )
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--to", choices=["hf", "peft", "lavis"], required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--keep-adapter", action="store_true", help="hf: adapters beside the weights, not merged"
    )
    parser.add_argument(
        "--whole", action="store_true", help="lavis: every weight, not only what was trained"
    )
    parser.add_argument(
        "--shard-gigabytes", type=float, default=5.0, metavar="N", help="hf: largest file"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return parser


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    sys.exit(main())
