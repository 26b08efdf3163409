"""`ibtrain recipes`, `check`, `plan`, `train`, `slurm` and `report`."""

import argparse
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from ibtrain.cli.saying import FAILED, INTERRUPTED, SUCCESS, rank, say, verb_of
from ibtrain.defaults import REPORT_SAMPLES


def add_recipes(verbs: Any) -> None:
    """Adds the verb `recipes`."""
    verb = verb_of(verbs, "recipes", _recipes, "list, print or copy the shipped recipes")
    verb.add_argument("action", nargs="?", choices=["show", "cp"])
    verb.add_argument("name", nargs="?", metavar="NAME")
    verb.add_argument("file", nargs="?", type=Path, metavar="FILE")


def _recipes(parsed: argparse.Namespace) -> int:
    from ibtrain.config import recipe_path, shipped_recipes

    if parsed.action is None:
        names = list(shipped_recipes())
        return say(parsed, {"recipes": names}, "\n".join(names))
    if parsed.name is None or (parsed.action == "cp") != (parsed.file is not None):
        raise ValueError("usage: ibtrain recipes [show NAME | cp NAME FILE]")
    path = recipe_path(parsed.name)
    if parsed.action == "show":
        return say(parsed, {"name": parsed.name, "yaml": path.read_text()}, path.read_text())
    if parsed.file.exists():
        raise FileExistsError(f"{parsed.file} exists; name a new file or remove it")
    shutil.copyfile(path, parsed.file)
    return say(parsed, {"file": str(parsed.file)}, f"copied to {parsed.file}")


def add_check(verbs: Any) -> None:
    """Adds the verb `check`."""
    verb = verb_of(verbs, "check", _check, "what this machine has and lacks, and for a recipe")
    verb.add_argument("recipe", nargs="?", metavar="RECIPE")
    verb.add_argument("overrides", nargs="*", metavar="key=value")


def _check(parsed: argparse.Namespace) -> int:
    from dataclasses import asdict

    from ibtrain.check.check import check, table
    from ibtrain.config import load_recipe
    from ibtrain.distributed.launchers import is_launched

    recipe = None if parsed.recipe is None else load_recipe(parsed.recipe, parsed.overrides)
    if is_launched():
        from ibtrain.check.nodes import check_nodes
        from ibtrain.distributed.processes import start_processes

        ranks = start_processes()
        findings = check_nodes(ranks, recipe, check)
        if ranks.rank:
            return SUCCESS
    elif "SLURM_JOB_ID" in os.environ:
        return _check_allocation(parsed.words)
    else:
        findings = check(recipe)
    well = all(finding.status != "MISS" for finding in findings)
    document = {"findings": [asdict(finding) for finding in findings], "ok": well}
    say(parsed, document, table(findings, shutil.get_terminal_size().columns))
    return SUCCESS if well else FAILED


def _check_allocation(words: list[str]) -> int:
    """Looks at every node of the allocation, by a task on each."""
    from ibtrain.check.nodes import allocation_command

    command = allocation_command(words)
    if command is None:
        raise FileNotFoundError("this is an allocation of Slurm, and there is no srun on the PATH")
    return subprocess.run(command).returncode


def add_plan(verbs: Any) -> None:
    """Adds the verb `plan`."""
    verb = verb_of(verbs, "plan", _plan, "memory, time, MFU and traffic of each sharding choice")
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
    say(parsed, asdict(plan), describe(plan))
    return SUCCESS if plan.chosen else FAILED


def add_train(verbs: Any) -> None:
    """Adds the verb `train`."""
    verb = verb_of(verbs, "train", _train, "train a recipe, from the beginning or where it stopped")
    verb.add_argument("recipe", metavar="RECIPE")
    verb.add_argument("overrides", nargs="*", metavar="key=value")


def _train(parsed: argparse.Namespace) -> int:
    # First, for what follows takes seconds to import, in which a scheduler may ask to stop.
    from ibtrain.distributed.interruption import Interruption

    interruption = Interruption()
    try:
        from ibtrain.config import load_recipe

        recipe = load_recipe(parsed.recipe, parsed.overrides)
        from ibtrain.training.loop import train

        result = train(recipe, interruption)
    finally:
        interruption.restore()
    if rank() == 0:
        state = "interrupted after" if result.interrupted else "done:"
        say(
            parsed,
            {"run": str(result.run), "step": result.step, "interrupted": result.interrupted},
            f"{state} step {result.step}, run directory {result.run}",
        )
    return INTERRUPTED if result.interrupted else SUCCESS


def add_slurm(verbs: Any) -> None:
    """Adds the verb `slurm`."""
    verb = verb_of(verbs, "slurm", _slurm, "the exact job of a run for this cluster")
    verb.add_argument("recipe", metavar="RECIPE")
    verb.add_argument("overrides", nargs="*", metavar="key=value")
    verb.add_argument("--nodes", type=int, required=True, metavar="N")
    verb.add_argument("--gpus-per-node", type=int, required=True, metavar="G")
    verb.add_argument("--gpu", metavar="NAME", help="default: what Slurm says; none for no GPUs")
    verb.add_argument("--time", default="24:00:00", help="of one start (default %(default)s)")
    for name in ("partition", "account", "qos", "constraint"):
        verb.add_argument(f"--{name}", help="as for sbatch")
    verb.add_argument("--cpus-per-gpu", type=int, default=8, metavar="N")
    verb.add_argument(
        "--lead", type=int, default=600, metavar="S", help="seconds before the limit to save"
    )
    verb.add_argument("--max-restarts", type=int, default=100, metavar="N")
    verb.add_argument("--container", metavar="IMAGE", help="a .sif file, or a name for pyxis")
    verb.add_argument("--node-cache", metavar="DIR", help="on each node's own disk, for shards")
    verb.add_argument("--submit", action="store_true", help="give it to sbatch")


def _slurm(parsed: argparse.Namespace) -> int:
    import ibtrain.torchvision_mend  # before transformers' own models are imported
    from ibtrain.config import load_recipe
    from ibtrain.jobs import Request, make_job, submit

    assert ibtrain.torchvision_mend
    recipe = load_recipe(parsed.recipe, parsed.overrides)
    fields = [name for name in Request.__dataclass_fields__ if hasattr(parsed, name)]
    request = Request(**{name: getattr(parsed, name) for name in fields})
    job = make_job(recipe, request, parsed.gpu)
    script = job.write()
    number = submit(script) if parsed.submit else None
    done = f"job {number} of {script}" if number else f"written to {script}; sbatch takes it"
    told = f"{job.script}\n# sharding={job.sharding}: {job.because}\n# {done}"
    return say(parsed, job.document() | {"job": number}, told)


def add_report(verbs: Any) -> None:
    """Adds the verb `report`."""
    verb = verb_of(verbs, "report", _report, "one page of a run, or of several together")
    verb.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    verb.add_argument(
        "--out", type=Path, metavar="FILE.html", help="default: report.html in the first RUN"
    )
    verb.add_argument(
        "--evaluation",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="an evaluation to show, beside those within the runs",
    )
    verb.add_argument(
        "--samples",
        type=int,
        default=REPORT_SAMPLES,
        metavar="N",
        help="of each dataset of the mixture (default %(default)s)",
    )


def _report(parsed: argparse.Namespace) -> int:
    from ibtrain.report.page import write_report

    out = parsed.out or parsed.runs[0] / "report.html"
    runs = write_report(parsed.runs, out, parsed.evaluation, parsed.samples)
    document = {
        "page": str(out),
        "runs": [{"run": str(run.path), "step": run.metrics.last_step} for run in runs],
    }
    return say(parsed, document, f"written to {out}; open it in a browser")
