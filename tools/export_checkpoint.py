"""Writes a trained model in a format that other programs load.

    python tools/export_checkpoint.py MODEL --to hf --out DIR [--json]

MODEL is a run directory, one of its steps, an export, or a directory in transformers' InstructBLIP
format. Exit code 0: written and proven; 1: the job failed (a full disk, a proof that fails);
2: the request was wrong.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

SUCCESS, FAILED, WRONG_REQUEST = 0, 1, 2
LATER = ("peft", "lavis")


def main(arguments: list[str] | None = None) -> int:
    """Parses, exports, reports; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    # Imported late: --help must not wait for torch.
    from safetensors import SafetensorError

    from ibtrain.export.huggingface import export_huggingface
    from ibtrain.export.proof import ExportError

    try:
        report = export_huggingface(
            parsed.model, parsed.out, shard_bytes=int(parsed.shard_gigabytes * 1e9)
        )
    except ValueError as error:
        print(f"export_checkpoint: {error}", file=sys.stderr)
        return WRONG_REQUEST
    except (ExportError, OSError, SafetensorError) as error:
        print(f"export_checkpoint: {error}", file=sys.stderr)
        return FAILED
    if parsed.json:
        print(json.dumps({"directory": str(report.directory), "proof": report.proof}))
    else:
        print(
            f"{report.directory} is written. Opened with transformers, the largest difference of "
            f"a logit is {report.proof['max_abs_logit_error']:.1e} over "
            f"{report.proof['answer_tokens']} answer tokens "
            f"(largest logit {report.proof['max_abs_logit']:.3g})."
        )
    return SUCCESS


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="export_checkpoint.py", description="Write a model in a format others load."
    )
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--to", type=_format, choices=["hf"], required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--shard-gigabytes", type=float, default=5.0, metavar="N", help="largest file (default 5)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return parser


def _format(name: str) -> str:
    if name in LATER:
        raise argparse.ArgumentTypeError(f"{name!r} is not written yet; so far only hf is")
    return name


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    sys.exit(main())
