"""`ibtrain check`: what this machine has and lacks for training, and for one recipe.

The facts come from check/facts.py, the verdicts from check/verdicts.py; here they are put together.
"""

import math
import os
import resource
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ibtrain.check import facts, verdicts
from ibtrain.check.verdicts import Finding
from ibtrain.config import ModelSection, Recipe, RecipeError
from ibtrain.sharding import AUTO, read_sharding

if TYPE_CHECKING:
    from ibtrain.check.attentions import Attentions
    from ibtrain.kernels.backends import AttentionKind, Choice

_WHOLE_FIRST = "make the packages above whole first"
NAMED_PACKAGES = ("transformers", "deepspeed", "mosaicml-streaming", "peft")
_CHECKPOINTS = (
    "a checkpoint takes 12 bytes for each trained parameter (2.3 GB for the published Q-Former), "
    "and checkpoint.keep of them stay"
)


def check(recipe: Recipe | None = None) -> list[Finding]:
    """Every finding about this machine, then those about the recipe."""
    torch = facts.read_torch()
    gpus, driver = facts.read_gpus()
    if not gpus and torch.available:
        gpus = facts.gpus_of_torch(torch.visible)
    findings = [
        *package_findings(torch, len(gpus)),
        verdicts.gpus(gpus, torch),
        verdicts.cuda(torch, len(gpus), driver),
        verdicts.nccl(torch.nccl, len(gpus)),
        *(() if torch.broken else attention_findings(recipe)),
        *tool_findings(_operators_of(recipe), len(gpus)),
        *host_findings(len(gpus)),
    ]
    return findings if recipe is None else [*findings, *recipe_findings(recipe)]


def attention_findings(recipe: Recipe | None) -> Iterator[Finding]:
    """The backend of each attention: of the recipe's model, or of the published sizes."""
    # transformers takes seconds to import, and without it the rest is still worth knowing.
    try:
        attentions = _attentions(recipe)
    except ImportError as error:
        yield Finding("attention", "MISS", f"cannot be told: {error}", _WHOLE_FIRST)
        return
    from ibtrain.kernels import allow_triton
    from ibtrain.kernels.backends import choose

    allow_triton(recipe is None or recipe.kernels == "auto")
    try:
        for name, kind in attentions.items():
            yield attention_finding(name, kind, choose(kind))
    except ValueError as error:
        yield Finding("attention", "MISS", "no backend", str(error))
    finally:
        allow_triton(True)


def attention_finding(name: str, kind: "AttentionKind", choice: "Choice") -> Finding:
    """The backend that the table of ibtrain.kernels chooses for one attention, and why."""
    row, found = f"attention: {name}", f"{choice.backend} for {kind}: {choice.because}"
    if choice.backend != "sdpa" or kind.device.type == "cpu":
        return Finding(row, "OK", found)
    told = "; ".join(f"{backend}: {reason}" for backend, reason in choice.passed_over)
    return Finding(row, "WARN", found, f"it is padded and masked: slower. Better ones: {told}")


def _attentions(recipe: Recipe | None) -> "Attentions":
    import torch

    import ibtrain.torchvision_mend  # before transformers' own models are imported
    from ibtrain.check.attentions import attentions_of, attentions_of_the_family
    from ibtrain.pretrained.base import base_config

    assert ibtrain.torchvision_mend
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    half = recipe is None or recipe.model.precision == "bf16"
    dtype = torch.bfloat16 if half else torch.float32
    if recipe is None:
        return attentions_of_the_family(device, dtype)
    try:
        config = base_config(recipe.model)
    except (ValueError, OSError):  # said by the rows of the base
        return attentions_of_the_family(device, dtype)
    return attentions_of(config, recipe.model.train_parts, device, dtype)


def package_findings(
    torch: facts.Torch, gpus: int, requirements: Path = facts.REQUIREMENTS
) -> Iterator[Finding]:
    """Python and the packages that are required."""
    wanted = facts.requirements(requirements)
    yield verdicts.python(sys.version_info[:3])
    yield verdicts.torch_package(wanted.pop("torch", ""), torch)
    version = facts.installed("torchvision")
    error = facts.torchvision_error() if version is not None and not torch.broken else None
    yield verdicts.torchvision(wanted.pop("torchvision", ""), version, error)
    for name in NAMED_PACKAGES:
        yield verdicts.package(name, wanted.pop(name, ""), facts.installed(name))
    yield verdicts.triton(wanted.pop("triton", ""), facts.installed("triton"), gpus)
    if wanted:
        yield verdicts.other_packages({name: facts.installed(name) for name in wanted}, wanted)


def tool_findings(operators: Sequence[str], gpus: int) -> Iterator[Finding]:
    """What kernels and operators are built with."""
    compiler = facts.on_path(os.environ.get("CC"), "gcc", "clang", "cc")
    yield verdicts.c_compiler(compiler, gpus)
    compiler = facts.on_path(os.environ.get("CXX"), "c++", "g++", "clang++")
    install = "apt install build-essential, or name one in CXX"
    yield verdicts.build_tool("C++ compiler", compiler, operators, install)
    install = "pip install ninja, and have the environment's bin/ on the PATH"
    yield verdicts.build_tool("ninja", facts.on_path("ninja"), operators, install)
    compiler = facts.cuda_compiler()
    if gpus == 0 and compiler is None:
        yield Finding("CUDA toolkit", "OK", "not needed without a GPU")
    else:
        install = "install the CUDA toolkit of torch's version, and name its directory in CUDA_HOME"
        yield verdicts.build_tool("CUDA toolkit", compiler, operators, install)


def host_findings(gpus: int) -> Iterator[Finding]:
    """Scheduler, memory, limits and disk."""
    sbatch, srun = facts.on_path("sbatch"), facts.on_path("srun")
    yield verdicts.slurm(sbatch, srun, os.environ.get("SLURM_JOB_ID"))
    yield verdicts.shared_memory(facts.total_bytes(Path("/dev/shm")))
    yield verdicts.open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    locked = verdicts.locked_memory(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0], gpus)
    if locked is not None:
        yield locked
    yield verdicts.host_memory(facts.host_memory(), facts.memory_limit())
    here = Path.cwd()
    fix = "runs and shards with a relative path go there: free some, or change to another directory"
    yield verdicts.disk("disk", here, facts.free_bytes(here), fix)
    cache = facts.hub_cache()
    yield verdicts.hub_cache(cache, os.access(facts.existing(cache), os.W_OK))


def recipe_findings(recipe: Recipe) -> Iterator[Finding]:
    """Whether what the recipe names is there, and whether there is room for what it writes."""
    yield sharding_finding(recipe.sharding)
    if recipe.root != Path():
        yield _directory("root", recipe.root, "make it, or name another: root=DIR")
    named = list(base_findings(recipe.model))
    yield from named
    if all(finding.status == "OK" for finding in named):
        yield opened_finding(recipe)
    yield shards_finding({entry.dataset: entry.path for entry in recipe.data.mixture})
    unpacked = "" if recipe.data.cache else ", as do unpacked shards (data.cache)"
    fix = f"{_CHECKPOINTS}{unpacked}: free some, or name another directory: output=DIR"
    yield writable_finding("run directory", recipe.output, "output", fix)
    if recipe.data.cache is not None:
        fix = "shards are unpacked there: free some, or name another directory: data.cache=DIR"
        yield writable_finding("shard cache", recipe.data.cache, "data.cache", fix)


def sharding_finding(sharding: str) -> Finding:
    """The DeepSpeed JSON."""
    if sharding == AUTO:
        return Finding("sharding", "OK", "auto: chosen when training starts (`ibtrain plan` tells)")
    try:
        operators = operators_of(read_sharding(sharding))
    except RecipeError as error:
        return Finding("sharding", "MISS", sharding, str(error))
    builds = f" (DeepSpeed builds {' and '.join(operators)})" if operators else ""
    return Finding("sharding", "OK", f"{sharding}{builds}")


def operators_of(config: Mapping[str, Any]) -> list[str]:
    """The operators that DeepSpeed compiles on first use under a configuration.

    The optimizer is torch's (training/engine.py), so offload to the host alone builds none.
    """
    zero = config.get("zero_optimization", {})
    offloads = [zero.get("offload_param"), zero.get("offload_optimizer")]
    found = []
    if any(isinstance(one, dict) and one.get("device") == "nvme" for one in offloads):
        found.append("async_io")
    if any(value is True for key, value in zero.items() if key.startswith("zero_quantized")):
        found.append("quantizer")
    return found


def _operators_of(recipe: Recipe | None) -> list[str]:
    try:
        return [] if recipe is None else operators_of(read_sharding(recipe.sharding))
    except RecipeError:
        return []  # sharding_finding tells of it


def base_findings(section: ModelSection) -> Iterator[Finding]:
    """What training starts from: each file and directory that the recipe names for it."""
    if section.random_base is not None:
        fix = "`ibtrain data toy DIR` writes one in DIR/processor"
        key = "model.random_base.processor"
        yield _directory(key, section.random_base.processor, fix)
    elif section.base is not None:
        yield _base("model.base", section.base, section.allow_download)
    elif section.parts is not None:
        for name in ("language", "bert", "vision", "stage1", "stage2", "instructblip"):
            path: Path | None = getattr(section.parts, name)
            if path is not None:
                yield _base(f"model.parts.{name}", path, section.allow_download)


def _base(key: str, path: Path, allow_download: bool) -> Finding:
    if facts.is_there(path):
        return Finding(key, "OK", str(path))
    fix = f"download it there, or name another directory: {key}=PATH"
    try:
        from ibtrain.pretrained.hub import resolve_directory
    except facts.IMPORT_ERRORS:  # of torch, which has a row of its own
        return Finding(key, "MISS", f"{path} is not there", fix)
    try:
        found = resolve_directory(path, allow_download=False)
    except (ValueError, OSError, ImportError) as error:
        if allow_download:
            why = "it is downloaded when training starts; on a machine without a network, before"
            return Finding(key, "WARN", f"{path} is not in the hub cache", why)
        return Finding(key, "MISS", str(error), f"{fix}, or model.allow_download=true")
    if facts.is_there(found):
        return Finding(key, "OK", str(found))
    return Finding(key, "MISS", f"{path} is not there", fix)


def opened_finding(recipe: Recipe) -> Finding:
    """Whether training could begin with the base: opened as training opens it, without the values
    of its weights.
    """
    try:
        import ibtrain.torchvision_mend  # before transformers' own models are imported
        from ibtrain.pretrained.starting import open_start

        assert ibtrain.torchvision_mend
        start = open_start(recipe)
    except ValueError as error:
        return Finding("base", "MISS", "training would refuse it", str(error))
    except OSError as error:
        remedy = "see that this user may read every file of it"
        return Finding("base", "MISS", f"it cannot be read: {error}", remedy)
    except facts.IMPORT_ERRORS as error:
        return Finding("base", "MISS", f"cannot be told: {facts.first_line(error)}", _WHOLE_FIRST)
    chosen = start.choose_sources(recipe)
    weights = sum(math.prod(source.shapes()[name]) for name, source in chosen.items())
    vocabulary = f"{len(start.tokenizer.language):,}"
    return Finding("base", "OK", f"{weights:,} weights, {vocabulary} tokens of the language model")


def shards_finding(locations: Mapping[str, str]) -> Finding:
    """The shards of a mixture: dataset to directory or address."""
    try:
        from ibtrain.data.shards.remote import local_directory
    except facts.IMPORT_ERRORS as error:  # of torch
        return Finding("shards", "WARN", f"not looked at: {error}", "install torch first")
    directories = {name: local_directory(location) for name, location in locations.items()}
    far = [name for name, directory in directories.items() if directory is None]
    missing = [
        name
        for name, directory in directories.items()
        if directory is not None and not facts.is_there(directory / "index.json")
    ]
    shown = f"{len(locations) - len(missing)} of {len(locations)} datasets"
    if far:
        shown += f", {len(far)} of them in an object store, which was not asked"
    if not missing:
        return Finding("shards", "OK", shown)
    first = missing[0]
    fix = (
        f"ibtrain data prepare {first} --raw DIR --out {directories[first]}"
        f"{', and so on' if missing[1:] else ''}; or name another directory: root=DIR"
    )
    return Finding("shards", "MISS", f"{shown}; no shards of {', '.join(missing)}", fix)


def _directory(name: str, path: Path, remedy: str) -> Finding:
    if facts.is_there(path):
        return Finding(name, "OK", str(path))
    return Finding(name, "MISS", f"{path} is not there", remedy)


def writable_finding(name: str, path: Path, key: str, remedy: str) -> Finding:
    """A directory that a run makes where it is not there yet, and the space for it."""
    above = facts.existing(path)
    if not above.is_dir() or not os.access(above, os.W_OK):
        found = f"{path} cannot be made: {above} is no directory that may be written to"
        return Finding(name, "MISS", found, f"name another directory: {key}=DIR")
    return verdicts.disk(name, path, facts.free_bytes(above), remedy)


def table(findings: Sequence[Finding], width: int) -> str:
    """The findings in columns, status first; a remedy stands below its finding.

    Args:
        findings: as they are shown.
        width: of the terminal.
    """
    names = max(len(finding.name) for finding in findings)
    margin = " " * 6
    lines = []
    for finding in findings:
        head = f"{finding.status:<6}{finding.name:<{names}}  "
        lines += _wrapped(head + finding.found, width, " " * len(head))
        lines += _wrapped(margin + finding.remedy, width, margin)
    counts = {
        status: sum(one.status == status for one in findings) for status in ("OK", "WARN", "MISS")
    }
    return "\n".join([*lines, ", ".join(f"{count} {status}" for status, count in counts.items())])


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    # Not cut at hyphens or within words: commands and paths are there to be copied.
    return textwrap.wrap(
        text.rstrip(),
        max(width, len(indent) + 20),
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )
