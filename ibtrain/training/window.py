"""What a run has done since its last line of metrics, summed over ranks."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ibtrain.batch import Batch


class Window:
    """Sums since the last report; only `close` talks to the other ranks."""

    def __init__(self, names: list[str], device: torch.device) -> None:
        self._index = {name: stratum for stratum, name in enumerate(names)}
        self._device = device
        self._reset()

    def _reset(self) -> None:
        # Per dataset: loss sum, answer tokens, samples.
        self._sums = torch.zeros(len(self._index), 3, dtype=torch.float64, device=self._device)
        self._seconds = 0.0
        self._waited = 0.0
        self._replaced = dict.fromkeys(self._index, 0)

    def replaced(self, datasets: Iterable[str]) -> None:
        """Counts draws of all ranks that were replaced, by dataset."""
        for name in datasets:
            self._replaced[name] += 1

    def add(
        self,
        micro_batches: Sequence[Batch],
        losses: Sequence[Tensor],
        seconds: float,
        waited: float,
    ) -> None:
        """Counts one step of this rank."""
        for batch, loss_A in zip(micro_batches, losses, strict=True):
            stratum_B = torch.tensor([self._index[name] for name in batch.datasets])
            stratum_A = stratum_B[batch.answer_sample_A].to(self._device)
            ones_A = torch.ones_like(loss_A, dtype=torch.float64)
            self._sums[:, 0].index_add_(0, stratum_A, loss_A.double())
            self._sums[:, 1].index_add_(0, stratum_A, ones_A)
            ones_B = torch.ones(len(batch), dtype=torch.float64, device=self._device)
            self._sums[:, 2].index_add_(0, stratum_B.to(self._device), ones_B)
        self._seconds += seconds
        self._waited += waited

    def close(self, world: int) -> dict[str, Any]:
        """Means over all ranks and steps since the last call, and begins anew."""
        sums = self._sums
        if world > 1:
            torch.distributed.all_reduce(sums)
        loss, tokens, samples = sums.sum(0).tolist()
        values = {
            "loss": loss / tokens,
            "loss_by_dataset": {
                name: sums[stratum, 0].item() / sums[stratum, 1].item()
                for name, stratum in self._index.items()
                if sums[stratum, 1] > 0
            },
            "samples_by_dataset": {
                name: int(sums[stratum, 2].item()) for name, stratum in self._index.items()
            },
            "quarantined": self._replaced,
            "samples_per_second": samples / self._seconds,
            "answer_tokens_per_second": tokens / self._seconds,
            "data_wait": self._waited / self._seconds,
        }
        self._reset()
        return values
