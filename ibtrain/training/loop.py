"""The training loop: one run from its recipe to its last checkpoint."""

import logging
import math
import random
import resource
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ibtrain import __version__
from ibtrain.batch import Batch
from ibtrain.config import Recipe
from ibtrain.data.mixture.fingerprint import order_fingerprint
from ibtrain.data.mixture.loader import MixtureLoader
from ibtrain.data.mixture.quarantine import BadDataError, Incident, Ledger
from ibtrain.data.mixture.reader import cache_directory
from ibtrain.distributed.interruption import Interruption
from ibtrain.distributed.processes import start_processes
from ibtrain.distributed.ranks import (
    Ranks,
    alike_on_every_rank,
    on_every_rank,
    on_rank_zero,
    on_rank_zero_only,
)
from ibtrain.distributed.sameness import refuse_unequal_code
from ibtrain.fencing import Incarnation
from ibtrain.pretrained.base import record_base
from ibtrain.run_directory import take_run
from ibtrain.sharding import micro_batches_per_step
from ibtrain.training.checkpoint import load_checkpoint, save_checkpoint
from ibtrain.training.engine import Engine
from ibtrain.training.placement import choose_sharding, write_plan
from ibtrain.training.request import Request
from ibtrain.training.resume import find_resume, refuse_changes
from ibtrain.training.schedule import learning_rate
from ibtrain.training.starts import record_start
from ibtrain.training.telemetry import Telemetry
from ibtrain.training.window import Window

logger = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """A run that cannot go on: a gradient that is not finite, a last checkpoint not kept."""


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended: its directory, the last step, and whether it was interrupted."""

    run: Path
    step: int
    interrupted: bool


def train(recipe: Recipe, interruption: Interruption) -> TrainingResult:
    """Trains `recipe`, going on from the latest checkpoint of its output directory if there is one.

    Call it in every rank's process. Returns on every rank. Of several runs in one output directory
    the one that was started last goes on; the others end.

    Args:
        recipe: the run.
        interruption: what asks this process to stop.

    Raises:
        FencedError, RuntimeError: when a run that was started later has taken the directory.
        ValueError: when the recipe, the base, the data or the run directory cannot be used.
        TrainingError: when training cannot go on.
        BadDataError: when more of the data is bad than the recipe's budget allows.
    """
    ranks = start_processes()
    refuse_unequal_code(ranks)
    on_every_rank(ranks, lambda: micro_batches_per_step(recipe, ranks.world))
    plan = on_rank_zero(ranks, lambda: choose_sharding(recipe, ranks))
    request = on_every_rank(ranks, lambda: Request.of(recipe, ranks, plan["sharding"]))
    order = order_fingerprint(recipe, request.mixture)
    base = on_rank_zero(
        ranks,
        lambda: record_base(
            recipe.model, request.start.config, request.start.tokenizer, recipe.seed
        ),
    )
    on_rank_zero(ranks, lambda: refuse_changes(recipe, order, base))
    incarnation = _take_run(ranks, recipe.output)

    def find() -> tuple[Path, int] | None:
        assert incarnation is not None
        resumed = find_resume(recipe, order, base, incarnation)
        write_plan(incarnation, plan)
        return resumed

    resumed = on_rank_zero(ranks, find)
    if _stop_wanted(ranks, interruption):
        return TrainingResult(recipe.output, 0 if resumed is None else resumed[1], True)
    run = _Run(request, order, base, resumed, incarnation, interruption)
    try:
        return run.to_the_end()
    finally:
        run.loader.close()


def _take_run(ranks: Ranks, run: Path) -> Incarnation | None:
    """Takes the run directory, on rank 0, and sees that all ranks look at the same one."""
    incarnation = on_rank_zero_only(ranks, lambda: take_run(run))
    own = None if incarnation is None else incarnation.directory
    directory, host = on_rank_zero(ranks, lambda: (own, socket.gethostname()))

    def look() -> None:
        if directory is None or not directory.is_dir():
            raise ValueError(
                f"{run} is not on a disk that all nodes share: what rank 0 on {host} wrote there "
                "is not seen here; name a directory on one with output=DIR"
            )

    on_every_rank(ranks, look)
    return incarnation


def _stop_wanted(ranks: Ranks, interruption: Interruption) -> bool:
    """Whether any rank was asked to stop while it started; before what takes long is loaded."""
    asked: list[Any] = [None] * ranks.world
    torch.distributed.all_gather_object(asked, interruption.requested)
    return any(asked)


class _Run:
    """The moving parts of one run, on one rank."""

    def __init__(
        self,
        request: Request,
        order: dict[str, Any],
        base: dict[str, str],
        resumed: tuple[Path, int] | None,
        incarnation: Incarnation | None,
        interruption: Interruption,
    ) -> None:
        self.incarnation, self.interruption = incarnation, interruption
        self.sharding = Path(request.sharding).stem
        self.recipe, self.ranks, self.order, self.base = request.recipe, request.ranks, order, base
        recipe, ranks, mixture, start = self.recipe, self.ranks, request.mixture, request.start
        self.names = [dataset.name for dataset in mixture.datasets]
        begin = None if resumed is None else resumed[0]
        chosen = on_every_rank(ranks, lambda: request.choose_sources(begin))
        self.engine = Engine(request.sharded, ranks, start.config, chosen)
        self.first_step = 0
        if resumed is not None:
            load_checkpoint(self.engine, resumed[0])
            self.first_step = resumed[1]
        self.loader = MixtureLoader(
            recipe,
            mixture,
            start.tokenizer,
            start.config.num_query_tokens,
            rank=ranks.rank,
            world=ranks.world,
            cache=cache_directory(recipe),
            first_step=self.first_step,
        )
        self.ledger = Ledger(mixture, recipe.data.bad_shard_budget)
        self.window = Window(self.names, self.engine.device)
        self.telemetry = on_rank_zero_only(ranks, self._begin_telemetry)
        self._announce(resumed, [data.name for data in mixture.datasets if data.draws == 0])

    def _begin_telemetry(self) -> Telemetry:
        assert self.incarnation is not None
        record_start(self.incarnation, self.first_step, self.ranks, self.engine.device)
        return Telemetry(self.incarnation, self.first_step)

    def _announce(self, resumed: tuple[Path, int] | None, unseen: Sequence[str]) -> None:
        if self.ranks.rank != 0:
            return
        if unseen:
            logger.warning(
                "an epoch is too short for a sample of %s; raise data.epoch_samples or a factor",
                ", ".join(unseen),
            )
        trained = sum(
            getattr(parameter, "ds_numel", parameter.numel())
            for _, parameter in self.engine.model.trainable()
        )
        begin = f"going on from {resumed[0].name}" if resumed else "from the beginning"
        logger.info(
            "%s: %s trained parameters, %s (ZeRO-%d) on %d rank%s, %s; %d of %d steps to do",
            self.recipe.name,
            f"{trained:,}",
            self.sharding,
            self.engine.stage,
            self.ranks.world,
            "" if self.ranks.world == 1 else "s",
            begin,
            self.recipe.training.steps - self.first_step,
            self.recipe.training.steps,
        )

    def to_the_end(self) -> TrainingResult:
        """Runs every remaining step; saves at the end and when interrupted."""
        training, every = self.recipe.training, self.recipe.checkpoint.every
        step, saved = self.first_step, self.first_step
        shares = iter(self.loader)
        interrupted = False
        while step < training.steps and not interrupted:
            started = time.perf_counter()
            micro_batches, failure = self._next_share(shares)
            waited = time.perf_counter() - started
            answer_tokens, interrupted = self._agree(step + 1, micro_batches, failure)
            rate = learning_rate(step, training)
            # Dropout is a function of (seed, step, rank), never of history.
            torch.manual_seed(_seed_of(self.recipe.seed, step, self.ranks.rank))
            losses, norm = self.engine.step(micro_batches, answer_tokens, rate, update=step)
            step += 1
            _check_norm(norm, step, saved)
            self.window.add(micro_batches, losses, time.perf_counter() - started, waited)
            if step % training.log_every == 0 or step == training.steps:
                self._report(step, rate, norm)
            due = step % every == 0 or step == training.steps or interrupted
            if due and self._save(step):
                saved = step
        self._check_saved(step, saved)
        return TrainingResult(self.recipe.output, step, interrupted and step < training.steps)

    @alike_on_every_rank()
    def _check_saved(self, step: int, saved: int) -> None:
        if saved != step:
            raise TrainingError(
                f"step {step} is done but its checkpoint could not be written; the last one kept "
                f"is of step {saved}; free space for {self.recipe.output} and give the same "
                "command again"
            )

    def _next_share(self, shares: Iterator[list[Batch]]) -> tuple[list[Batch], str | None]:
        """This rank's micro-batches, or why there are none: the others must hear of it first."""
        try:
            return next(shares), None
        except (BadDataError, ValueError, OSError, RuntimeError) as error:
            return [], str(error)

    def _agree(
        self, step: int, micro_batches: Sequence[Batch], failure: str | None
    ) -> tuple[int, bool]:
        """Answer tokens of the global batch, and whether any rank was asked to stop.

        Raises:
            BadDataError: on every rank, when one of them has no data, or when all that the ranks
                met together is more than the budget allows.
            RuntimeError: on every rank, when a later start has taken the run directory.
        """
        incidents = self.loader.take_incidents()
        own = [
            sum(batch.answer_ids_A.numel() for batch in micro_batches),
            int(self.interruption.requested is not None),
            len(incidents) + (failure is not None),
            int(self.incarnation is not None and not self.incarnation.holds()),
        ]
        shared = torch.tensor(own, dtype=torch.int64, device=self.engine.device)
        torch.distributed.all_reduce(shared)
        tokens, stop, troubles, fenced = shared.tolist()
        if fenced:
            on_rank_zero(self.ranks, self._check_held)
        if troubles:
            self._share_troubles(step, incidents, failure)
        return tokens, stop > 0

    def _check_held(self) -> None:
        assert self.incarnation is not None
        self.incarnation.check()

    def _share_troubles(self, step: int, incidents: list[Incident], failure: str | None) -> None:
        """Every rank learns of all incidents and failures; rank 0 reports what is new."""
        gathered: list[Any] = [None] * self.ranks.world
        torch.distributed.all_gather_object(gathered, (incidents, failure))
        met = [incident for theirs, _ in gathered for incident in theirs]
        new = [incident for incident in met if self.ledger.enter(incident)]
        self.window.replaced(incident.dataset for incident in met if incident.kind == "replaced")
        if self.telemetry is not None:
            self.telemetry.quarantine(step, [asdict(incident) for incident in new])
            for incident in new:
                logger.warning("data, step %d: %s", step, incident)
        with alike_on_every_rank():
            for _, theirs in gathered:
                if theirs is not None:
                    raise BadDataError(theirs)
            self.ledger.check()

    def _report(self, step: int, rate: float, norm: float) -> None:
        values = self.window.close(self.ranks.world)
        if self.telemetry is None:
            return
        values |= {
            "learning_rate": rate,
            "gradient_norm": norm,
            "epoch": step / self.loader.steps_per_epoch,
            "memory": _memory(self.engine.device),
        }
        self.telemetry.log(step, values)
        logger.info(
            "step %d/%d  loss %.4f  rate %.2e  norm %.2f  %.1f samples/s  %d answer tokens/s",
            step,
            self.recipe.training.steps,
            values["loss"],
            rate,
            norm,
            values["samples_per_second"],
            values["answer_tokens_per_second"],
        )

    def _save(self, step: int) -> bool:
        state = {
            "ibtrain": __version__,
            "samples": step * self.recipe.training.global_batch,
            "world_size": self.ranks.world,
            "order": self.order,
            "base": self.base,
            "recipe": self.recipe.model_dump(mode="json"),
        }
        return save_checkpoint(
            self.engine,
            self.recipe.output,
            step,
            state,
            self.recipe.checkpoint.keep,
            self.incarnation,
        )


@alike_on_every_rank()
def _check_norm(norm: float, step: int, saved: int) -> None:
    if not math.isfinite(norm):
        raise TrainingError(
            f"the gradient norm of step {step} is {norm}; the last checkpoint is of step {saved}; "
            "lower training.learning_rate or set training.gradient_clip"
        )


def _seed_of(seed: int, step: int, rank: int) -> int:
    """A seed of 63 bits for one step of one rank."""
    return random.Random(f"{seed}/{step}/{rank}").getrandbits(63)


def _memory(device: torch.device) -> dict[str, float]:
    """Peak memory in GiB of this process, and of its device if it has one."""
    peak = {"host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    if device.type == "cuda":
        peak["device_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return peak
