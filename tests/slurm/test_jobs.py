"""The other job scripts on a real Slurm, and what mistakes in a request are answered with."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ibtrain.files import sha256_of
from tests.slurm.conftest import HERE, ROOT, Cluster

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


def test_the_verb_submits_the_job_that_it_prints(
    cluster: Cluster, world_directory: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    recipe = (str(world_directory / "tiny.yaml"), f"output={run}", "training.steps=4")
    sizes = ("--nodes", "2", "--gpus-per-node", "1", "--time", "30")
    verb = (sys.executable, "-m", "ibtrain", "slurm", *recipe, "sharding=auto", *sizes)
    told = json.loads(cluster.run(*verb, "--submit", "--json"))
    assert told["script"] == str(run / "train.sbatch") and told["plan"]["device"] == "h100"
    job = cluster.job(told["job"])
    assert job.wait() == 0, job.output()
    assert job.file == run / f"ibtrain-{job.number}.out"
    assert f"{told['sharding']} (ZeRO-" in job.output() and "on 2 ranks" in job.output()
    plan = json.loads((run / "plan.json").read_text())
    assert (plan["sharding"], plan["because"]) == (told["sharding"], told["because"])
    for mistake, said in (
        (("--partition", "nope"), "there is no partition 'nope'; there are gpu, urgent"),
        (("--gpus-per-node", "9"), "9 GPUs a node are asked for, and no node of partition gpu has"),
        (("training.global_batch=9",), "training.global_batch is 9, which does not divide among 2"),
    ):
        refused = cluster.tried(*verb, *mistake)
        (line,) = refused.stderr.strip().splitlines()
        assert refused.returncode == 2 and line.startswith(f"ibtrain: {said}"), line


def test_mistakes_that_only_the_nodes_can_see(
    cluster: Cluster, world_directory: Path, tmp_path: Path
) -> None:
    """A run directory that is each node's own, other code on a node, a port that is taken."""
    tiny = (str(world_directory / "tiny.yaml"), "training.steps=2")
    apart = cluster.train(cluster.own / "run", 2, *tiny)
    assert apart.wait() == 2, apart.output()
    assert said_in(apart.output()) == (
        f"rank 1 on node2: {cluster.own}/run is not on a disk that all nodes share: what rank 0 on "
        "node1 wrote there is not seen here; name a directory on one with output=DIR"
    )
    assert wrong_batch(cluster, tmp_path, tiny)

    code = cluster.own / "code"
    for node in ("node1", "node2"):
        cluster.node(node, "exec", "mkdir", str(code))
        parts = (str(ROOT / "ibtrain"), str(ROOT / "ds_configs"))
        cluster.node(node, "exec", "cp", "-r", *parts, "-t", str(code))
    cluster.node("node2", "exec", "sh", "-c", f"echo >> {code}/ibtrain/batch.py")
    options = (f"--export=ALL,PYTHONPATH={code}",)
    other = cluster.train(tmp_path / "other", 2, *tiny, options=options)
    assert other.wait() == 2, other.output()
    assert said_in(other.output()) == (
        "node1 and node2 run different code: ibtrain/batch.py differs; install the same on every "
        "node, or put the environment on a disk that they share"
    )

    with listening(cluster, "node1", 23456):
        options = ("--export=ALL,MASTER_PORT=23456", "--nodelist=node1")
        taken = cluster.train(tmp_path / "taken", 1, *tiny, options=options)
        assert taken.wait() == 2
    assert said_in(taken.output()) == (
        "MASTER_PORT 23456 on 127.0.0.1 is taken by another process; name a free one: export "
        "MASTER_PORT=PORT, alike for every process (deepspeed --master_port PORT)"
    )


@contextmanager
def listening(cluster: Cluster, node: str, port: int) -> Iterator[None]:
    """Something else that has a port of a node."""
    code = (
        f"import socket; s = socket.socket(); s.bind(('', {port})); s.listen(); print(1, flush=1)"
    )
    command = [HERE / "cluster_node.sh", node, "exec", sys.executable, "-c", f"{code}; input()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=cluster.environment, text=True, **pipes) as process:
        assert process.stdout.readline() == "1\n"
        yield
        process.communicate("\n")


def wrong_batch(cluster: Cluster, tmp_path: Path, tiny: tuple[str, ...]) -> bool:
    job = cluster.train(tmp_path / "batch", 2, *tiny, "training.global_batch=9")
    assert job.wait() == 2
    said = "training.global_batch is 9, which does not divide among 2 ranks; choose a multiple of 2"
    return said_in(job.output()).startswith(said)


def said_in(output: str) -> str:
    """What the ranks complained of, which one of them tells."""
    (line,) = [line for line in output.splitlines() if line.startswith("ibtrain: ")]
    return line.removeprefix("ibtrain: ")


def test_a_check_of_an_allocation_looks_at_every_node(
    cluster: Cluster, world_directory: Path, tmp_path: Path
) -> None:
    recipe = (str(world_directory / "tiny.yaml"), f"output={tmp_path / 'run'}", "--json")
    done = cluster.tried("salloc", "--nodes=2", sys.executable, "-m", "ibtrain", "check", *recipe)
    rows = {row["name"]: row for row in json.loads(done.stdout)["findings"]}
    assert rows["nodes"]["found"] == "2, 2 ranks: node1, node2"
    for name in (
        "code",
        "GPU clocks",
        "clock skew",
        "all-reduce",
        "shared disk",
        "base on all nodes",
    ):
        assert rows[name]["status"] == "OK", rows[name]
    assert "GB/s (gloo, 2 ranks, 64 MiB)" in rows["all-reduce"]["found"]
    assert "seen by all" in rows["shared disk"]["found"]
    apart = (str(world_directory / "tiny.yaml"), f"output={cluster.own / 'run'}", "--json")
    done = cluster.tried("salloc", "--nodes=2", sys.executable, "-m", "ibtrain", "check", *apart)
    rows = {row["name"]: row for row in json.loads(done.stdout)["findings"]}
    assert rows["shared disk"]["status"] == "MISS" and done.returncode == 1
    assert rows["shared disk"]["found"].endswith("is not seen by node2")


def test_two_nodes_score_as_one_process_does(
    cluster: Cluster, world_directory: Path, quiet: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    ibtrain = (sys.executable, "-m", "ibtrain")
    raw = ("--raw", str(world_directory / "raw/gqa"), "--split", "testdev")
    cluster.run(*ibtrain, "data", "prepare", "gqa", *raw, "--out", data / "gqa")
    arguments = (str(quiet), "--data", str(data), "--limit", "24", "--out")
    cluster.run(*ibtrain, "evaluate", *arguments, tmp_path / "one")
    sizes = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1")
    arguments = (*arguments, str(tmp_path / "two"))
    job = cluster.submit(*sizes, script=EVALUATE, arguments=arguments)
    assert job.wait() == 0, job.output()
    one, two = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")
    )
    assert one["benchmarks"] == two["benchmarks"]


def test_an_export_on_a_node(cluster: Cluster, quiet: Path, tmp_path: Path) -> None:
    arguments = (str(quiet), "--to", "hf", "--out", str(tmp_path / "hf"))
    job = cluster.submit("--cpus-per-task=1", script=EXPORT, arguments=arguments)
    assert job.wait() == 0, job.output()
    assert (tmp_path / "hf/config.json").is_file()
