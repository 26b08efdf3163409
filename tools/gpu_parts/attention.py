"""tools/bench_attention.py, as a part of the report."""

import json
import shutil

import bench_attention
from gpu_parts.sheet import Job, Sheet, card


def run(job: Job, sheet: Sheet) -> None:
    """Every backend at the family's shapes, the most telling first, while there is time."""
    out = job.scratch / "attention"
    # What is being measured when the time is over is still ended, and the tables are written.
    minutes = 0.1 if job.rehearse else (job.seconds - 25) / 60
    with card(job, alone=True):
        code = bench_attention.main(
            ["--out", str(out), "--minutes", str(minutes), *(["--quick"] * job.rehearse)]
        )
    report = json.loads((out / "attention.json").read_text())
    sheet.facts |= {key: report[key] for key in ("limits", "choices", "verdicts", "left_out")}
    sheet.rows = report["rows"]
    shutil.copyfile(out / "attention.md", job.scratch / "attention.md")
    if (out / "attention.png").is_file():
        shutil.copyfile(out / "attention.png", job.scratch / "attention.png")
    if code:
        for row in report["rows"]:
            if row["status"] in ("wrong", "failed"):
                sheet.fault(
                    f"{row['status']}: {row['shape']}, {row['contender']}, {row['passes']}: "
                    f"{row['reason']}"
                )
