"""Reading a mixture: draws of its order to packed micro-batches, in this process or in workers.

The order is made in the training process; workers get draws and give batches, so nothing that a
step needs depends on how many there are. What goes wrong in a worker comes back as a sentence.

Neither StreamingDataset nor torch's DataLoader is used: docs/data.md has what was measured of both.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch

from ibtrain.batch import Batch
from ibtrain.config import Recipe
from ibtrain.data.mixture.collate import Sample, collate
from ibtrain.data.mixture.order import epoch_order
from ibtrain.data.mixture.quarantine import BadDataError, Incident
from ibtrain.data.mixture.reader import Draw, MixtureReader
from ibtrain.data.mixture.shares import Mixture
from ibtrain.data.mixture.worker_processes import ProcessDiedError, ReadingProcesses
from ibtrain.tokenization import InstructionTokenizer

_PREFETCH = 2  # batches per worker


@dataclass(frozen=True)
class _Share:
    """What a worker gives: this rank's micro-batches of one step, or what went wrong."""

    micro_batches: list[Batch]
    incidents: list[Incident]
    failure: str | None = None

    def pin_memory(self) -> "_Share":
        """The same in page-locked memory."""
        return replace(self, micro_batches=[batch.pin_memory() for batch in self.micro_batches])


class _Shares:
    """Draws of one step to a share."""

    def __init__(
        self, reader: MixtureReader, recipe: Recipe, tokenizer: InstructionTokenizer, queries: int
    ) -> None:
        self._reader = reader
        self._recipe = recipe
        self._tokenizer = tokenizer
        self._query_tokens = queries

    def __call__(self, draws: Sequence[Draw]) -> _Share:
        try:
            samples = [self._reader.sample(draw) for draw in draws]
            micro_batches = self._packed(samples)
        except (BadDataError, ValueError, OSError) as error:
            return _Share([], self._reader.take_incidents(), str(error))
        return _Share(micro_batches, self._reader.take_incidents())

    def _packed(self, samples: Sequence[Sample]) -> list[Batch]:
        size = self._recipe.training.micro_batch
        return [
            collate(
                samples[begin : begin + size],
                self._tokenizer,
                query_tokens=self._query_tokens,
                image_size=self._recipe.data.image_size,
            )
            for begin in range(0, len(samples), size)
        ]


class _Draws:
    """This rank's draws, step after step, from a step on and without end."""

    def __init__(self, mixture: Mixture, seed: int, rank: int, world: int, first_step: int) -> None:
        self._mixture = mixture
        self._seed = seed
        self._rank = rank
        self._world = world
        self._first_step = first_step

    def __iter__(self) -> Iterator[list[Draw]]:
        mixture = self._mixture
        strata = mixture.order_strata()
        epoch, begin = divmod(self._first_step, mixture.epoch_samples // mixture.global_batch)
        first_position = self._rank * (mixture.global_batch // self._world)
        while True:
            order = epoch_order(
                strata,
                epoch,
                seed=self._seed,
                global_batch=mixture.global_batch,
                draw=mixture.draw,
            ).share(self._rank, self._world)
            for step in range(begin, len(order.stratum)):
                columns = (order.stratum[step], order.number[step], order.repeat[step])
                rows = zip(*(column.tolist() for column in columns), strict=True)
                position = step * mixture.global_batch + first_position
                yield [Draw(epoch, position + offset, *row) for offset, row in enumerate(rows)]
            epoch, begin = epoch + 1, 0


class MixtureLoader:
    """Iterates over this rank's shares of the global batches, from any step on, without end.

    The concatenation of the ranks' shares in the order of ranks is the same sequence for any number
    of ranks and workers.

    Args:
        recipe: the run.
        mixture: resolved.
        tokenizer: of the base.
        query_tokens: visual tokens per image.
        rank: of this process.
        world: number of ranks.
        cache: directory that shards are unpacked to.
        first_step: the step to begin at; 0 is the beginning.
    """

    def __init__(
        self,
        recipe: Recipe,
        mixture: Mixture,
        tokenizer: InstructionTokenizer,
        query_tokens: int,
        *,
        rank: int,
        world: int,
        cache: Path,
        first_step: int = 0,
    ) -> None:
        self.steps_per_epoch = mixture.epoch_samples // mixture.global_batch
        self._incidents: list[Incident] = []
        self._workers = recipe.data.workers
        self._timeout = recipe.data.worker_timeout
        self._shares_of = _Shares(
            MixtureReader(recipe, mixture, cache), recipe, tokenizer, query_tokens
        )
        self._draws = iter(_Draws(mixture, recipe.seed, rank, world, first_step))
        self._steps: Generator[list[Batch]] | None = None

    def __iter__(self) -> Iterator[list[Batch]]:
        """Micro-batches of this rank, one list per step.

        Raises:
            BadDataError: a sample cannot be had: too much is bad, the cache cannot be written, a
                worker died or stands still.
        """
        assert self._steps is None, "a loader is iterated once"
        shares = self._from_workers() if self._workers else self._from_here()
        self._steps = self._iterate(shares)
        return self._steps

    def take_incidents(self) -> list[Incident]:
        """What went wrong in the steps that were given since the last call."""
        taken, self._incidents = self._incidents, []
        return taken

    def close(self) -> None:
        """Ends the workers."""
        if self._steps is not None:
            self._steps.close()

    def _iterate(self, shares: Generator[_Share]) -> Generator[list[Batch]]:
        with closing(shares):
            for share in shares:
                self._incidents += share.incidents
                if share.failure is not None:
                    raise BadDataError(share.failure)
                yield share.micro_batches

    def _from_here(self) -> Generator[_Share]:
        for draws in self._draws:
            yield _pinned(self._shares_of(draws))

    def _from_workers(self) -> Generator[_Share]:
        with closing(ReadingProcesses(self._workers, self._shares_of, _pinned)) as workers:
            for draws in islice(self._draws, _PREFETCH * self._workers):
                workers.ask(draws)
            for draws in self._draws:
                try:
                    share = workers.next(self._timeout)
                except TimeoutError:
                    raise BadDataError(
                        f"no batch came within {self._timeout:g} seconds: a disk or an object "
                        "store does not answer; look at it, or raise data.worker_timeout"
                    ) from None
                except ProcessDiedError as error:
                    raise BadDataError(
                        f"a process that reads data died ({error}); if memory was short, lower "
                        "data.workers"
                    ) from error
                workers.ask(draws)
                yield share


def _pinned(share: _Share) -> _Share:
    """In page-locked memory where there is a GPU."""
    return share.pin_memory() if torch.cuda.is_available() else share
