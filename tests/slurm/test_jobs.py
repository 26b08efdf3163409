"""The other job scripts on a real Slurm, and what mistakes in a request are answered with."""

import json
from pathlib import Path

from ibtrain.files import sha256_of
from tests.slurm.conftest import ROOT, Cluster

PREPARE, EVALUATE, EXPORT = (
    ROOT / f"slurm/{name}.sbatch" for name in ("prepare", "evaluate", "export")
)


def digests(directory: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in directory.iterdir() if path.name != "card.json"}


def test_an_array_converts_and_a_job_merges(
    cluster: Cluster, world_directory: Path, tmp_path: Path
) -> None:
    """One part is killed and given again; the shards are those of one process."""
    out = tmp_path / "vqav2"
    arguments = ("vqav2", "--raw", str(world_directory / "raw/vqav2"), "--out", str(out))
    sizes = ("--cpus-per-task=1",)
    array = cluster.submit("--array=1-3", "--hold", *sizes, script=PREPARE, arguments=arguments)
    cluster.run("scancel", f"{array.number}_2")
    cluster.run("scontrol", "release", array.number)
    again = cluster.submit(
        "--array=2", *sizes, script=PREPARE, arguments=("--parts", "3", "--", *arguments)
    )
    again.wait_until((out / "index.json").is_file, 120)
    jobs = cluster.run("squeue", "--noheader", "--states=all", "--format=%A %j").splitlines()
    (number,) = [job.split()[0] for job in jobs if job.endswith("ibtrain-merge")]
    merge = cluster.job(number)
    assert merge.wait() == 0, merge.output()
    assert digests(out) == digests(world_directory / "shards/vqav2")
    card = json.loads((out / "card.json").read_text())
    assert card["report"]["written"] > 0
