"""Every benchmark of a directory, answered, scored and written down: what `ibtrain evaluate` does.

Under a launcher the ranks share the records; the first one scores and writes.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ibtrain.data.shards.index import INDEX
from ibtrain.data.shards.records import read_records
from ibtrain.distributed.launchers import find_start
from ibtrain.distributed.processes import start_processes
from ibtrain.distributed.ranks import Ranks, on_every_rank, on_rank_zero
from ibtrain.evaluation.benchmarks import Options, evaluate
from ibtrain.evaluation.candidates import read_candidates
from ibtrain.evaluation.protocols import Protocol, protocol_of
from ibtrain.evaluation.report import write_results
from ibtrain.evaluation.scoring import Result
from ibtrain.pretrained.opening import OpenedModel, open_to_answer

logger = logging.getLogger(__name__)
ANSWERS = "answers"


def evaluate_benchmarks(
    model: Path,
    data: Path,
    benchmarks: Sequence[str] | None,
    out: Path,
    options: Options = Options(),  # noqa: B008  (frozen)
    *,
    vocabularies: Mapping[str, Path] | None = None,
    protocols: Mapping[str, Path] | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Evaluates a model and writes what report.py names to `out`.

    Args:
        model: see `ibtrain.pretrained.finding.find_model`.
        data: holds one directory of shards per benchmark, whose name the benchmark goes by.
        benchmarks: those to evaluate; None for every one that can be.
        out: where to write.
        options: how.
        vocabularies: by benchmark a file of candidates, or shards whose answers they are.
        protocols: by benchmark a dataset's file whose section `evaluation` counts.
        ranks: this process among others, where that is known; else the launcher tells.

    Returns:
        The document of results.json; on other ranks than the first nothing is in it.

    Raises:
        ValueError: when the model, a benchmark or its shards cannot be used.
    """
    ranks = ranks or joined()
    found = on_rank_zero(ranks, lambda: find_benchmarks(data, benchmarks, protocols))
    words = on_rank_zero(ranks, lambda: read_vocabularies(vocabularies or {}, found))
    options = replace(options, vocabularies=words)
    opened = on_every_rank(ranks, lambda: open_to_answer(model))
    digest = weights_digest(opened)
    results: list[Result] = []
    for directory, protocol in found.items():
        for name in _usable_ways(directory, protocol, words):
            result = evaluate(
                *(opened, directory, protocol, name, out / ANSWERS, options),
                ranks=ranks,
                model=digest,
            )
            if result is not None:
                results.append(result)
    about = {"model": opened.description, "step": opened.step, "weights": digest}
    return on_rank_zero(ranks, lambda: write_results(results, out, about))


def joined() -> Ranks:
    """This process among those of its launcher; alone where there is none."""
    start = find_start()
    return start_processes() if start.ranks.world > 1 else start.ranks


def weights_digest(opened: OpenedModel) -> str:
    """What tells a model's weights from others: a hash of every tensor's sum and of some values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(opened.model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // 64)].double()
        values = [float(flat.sum(dtype=torch.float64)), *some.tolist()]
        digest.update(f"{name}{tuple(tensor.shape)}{values}".encode())
    return digest.hexdigest()[:16]


def find_benchmarks(
    data: Path, benchmarks: Sequence[str] | None, protocols: Mapping[str, Path] | None = None
) -> dict[Path, Protocol]:
    """The shard directories to evaluate on, and how.

    Raises:
        ValueError: when a named one is missing or nothing says how to evaluate it, or none is
            found.
    """
    if not data.is_dir():
        raise ValueError(
            f"{data} is not there; `ibtrain data prepare` writes shards to evaluate on"
        )
    found = {path.parent.name: path.parent for path in sorted(data.glob(f"*/{INDEX}"))}
    if not found and (data / INDEX).is_file():
        found = {data.resolve().name: data}
    own = dict(protocols or {})
    for name in (*own, *(benchmarks or ())):
        if name not in found:
            raise ValueError(
                f"{data} holds no benchmark {name!r}; found: {', '.join(found) or 'none'}"
            )
    if benchmarks is not None:
        names = dict.fromkeys(benchmarks)
        return {found[name]: protocol_of(found[name], own.get(name)) for name in names}
    usable = {}
    for name, directory in found.items():
        try:
            usable[directory] = protocol_of(directory, own.get(name))
        except ValueError as error:
            if name in own:
                raise
            logger.info("%s is left out: %s", directory, error)
    if not usable:
        raise ValueError(
            f"{data} holds no benchmark that is scored here; found: {', '.join(found) or 'none'}"
        )
    return usable


def read_vocabularies(
    given: Mapping[str, Path], found: Mapping[Path, Protocol]
) -> dict[str, tuple[str, ...]]:
    """The candidates of each vocabulary: of a file, or all answers in a directory of shards, the
    most frequent first.

    Raises:
        ValueError: a name is none of the benchmarks, or a file or directory cannot be used.
    """
    names = {directory.name for directory in found}
    words = {}
    for name, path in given.items():
        if name not in names:
            raise ValueError(
                f"--vocabulary {name}={path}: no benchmark is called {name!r}; there are "
                f"{', '.join(sorted(names))}"
            )
        words[name] = _answers_in(path) if path.is_dir() else _listed(path)
    return words


def _listed(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise ValueError(f"the vocabulary {path} is not there; give a file or prepared shards")
    candidates, _ = read_candidates([str(path)])
    if isinstance(candidates, Mapping):
        raise ValueError(f"{path} holds labels; a vocabulary is a list of answers")
    return tuple(candidates)


def _answers_in(directory: Path) -> tuple[str, ...]:
    counts: dict[str, float] = {}
    for record in read_records(directory):
        for one in record.answers:
            text = one.text.strip()
            if text:
                counts[text] = counts.get(text, 0) + one.weight
    if not counts:
        raise ValueError(f"{directory}: no record has an answer, so there is no vocabulary in it")
    return tuple(sorted(counts, key=lambda text: (-counts[text], text)))


def _usable_ways(
    directory: Path, protocol: Protocol, words: Mapping[str, tuple[str, ...]]
) -> list[str]:
    """The ways that can be gone: without a vocabulary those that need one are left out.

    Raises:
        ValueError: none is left.
    """
    usable = [
        name
        for name, way in protocol.ways.items()
        if way.candidates != "answers" or directory.name in words
    ]
    left_out = [name for name in protocol.ways if name not in usable]
    said = (
        f"{directory.name}: ranking needs a vocabulary; give --vocabulary {directory.name}=FILE or "
        "the prepared training split, whose answers are meant"
    )
    if not usable:
        raise ValueError(said)
    if left_out:
        logger.warning("%s (left out: %s)", said, ", ".join(left_out))
    return usable
