"""Times on a device, free of what its host needs."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


class Clock:
    """Times on the device: the median of many runs, in milliseconds, and the host's part."""

    def __init__(self, device: torch.device, most: int) -> None:
        self.cuda, self.most = device.type == "cuda", most
        # Larger than any card's L2 cache.
        self.flush = torch.empty(256 << 20, dtype=torch.uint8, device=device) if self.cuda else None

    def measure(
        self, run: Callable[[Any], Any], prepare: Callable[[], Any] = lambda: None
    ) -> tuple[float, float]:
        """(device, host) milliseconds of `run` on what `prepare` gives, which is not timed."""
        for _ in range(3):
            run(prepare())
        host = [self._alone(run, prepare) for _ in range(5)]
        whole, enqueued = (statistics.median(each) for each in zip(*host, strict=True))
        runs = max(min(10, self.most), min(self.most, int(0.5 / (whole + 1e-6))))
        if not self.cuda:
            taken = [self._alone(run, prepare)[0] for _ in range(runs)]
            return 1e3 * statistics.median(taken), 1e3 * enqueued
        return self._by_events(run, prepare, runs, enqueued), 1e3 * enqueued

    def _alone(self, run: Callable[[Any], Any], prepare: Callable[[], Any]) -> tuple[float, float]:
        given = prepare()
        self._wait()
        begun = time.perf_counter()
        kept = run(given)
        enqueued = time.perf_counter() - begun
        self._wait()
        whole = time.perf_counter() - begun
        del kept  # after the time: it may hold a graph and large tensors
        return whole, enqueued

    def _by_events(
        self, run: Callable[[Any], Any], prepare: Callable[[], Any], runs: int, enqueued: float
    ) -> float:
        assert self.flush is not None
        # At about two cycles a nanosecond the device sleeps twice as long as the host needs.
        cycles = int(2e9 * min(0.02, 2 * enqueued + 1e-4))
        pairs = []
        for _ in range(runs):
            given = prepare()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.flush.zero_()
            torch.cuda._sleep(cycles)
            begin.record()
            run(given)
            end.record()
            pairs.append((begin, end))
        self._wait()
        return statistics.median(begin.elapsed_time(end) for begin, end in pairs)

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()
