"""What was found: a row for each measurement, and verdicts on the targets."""

import dataclasses

from ibtrain.kernels.backends import Backend


@dataclasses.dataclass
class Row:
    """One contender at one shape in one direction."""

    kind: str
    shape: str
    family: str
    contender: str
    passes: str
    status: str
    """measured, cannot, failed, wrong, or left out"""
    reason: str = ""
    chosen: bool = False
    milliseconds: float | None = None
    host_milliseconds: float | None = None
    tflops: float | None = None
    gigabytes_per_second: float | None = None
    of_limit: float | None = None
    of_copy_bandwidth: float | None = None
    forward_error: float | None = None
    gradient_error: float | None = None
    compile_seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A target and how it was kept: `figures` that must be at least `need`, by shape."""

    target: str
    need: float
    figures: dict[str, float]

    @property
    def state(self) -> str:
        """met, missed, or not measured."""
        if not self.figures:
            return "not measured"
        return "met" if min(self.figures.values()) >= self.need else "missed"

    def lines(self) -> list[str]:
        """The verdict for a person: the target, then each figure."""
        kept = [value >= self.need for value in self.figures.values()]
        count = f" ({sum(kept)} of {len(kept)})" if kept else ""
        each = (
            f"    {'met   ' if value >= self.need else 'missed'} {value:7.3f}  {name}"
            for name, value in sorted(self.figures.items(), key=lambda item: item[1])
        )
        return [f"{self.state}{count}: {self.target}", *each]


def verdicts(rows: list[Row]) -> list[Verdict]:
    """The targets against what was measured."""
    times: dict[str, dict[str, float]] = {}
    chosen: dict[str, str] = {}
    families: dict[str, str] = {}
    for row in rows:
        if row.kind == "attention" and row.milliseconds:
            where = f"{row.shape}, {row.passes}"
            times.setdefault(where, {})[row.contender] = row.milliseconds
            families[where] = row.family
            if row.chosen:
                chosen[where] = row.contender
    ours = Backend.TRITON.value
    against_padded, against_best, against_backends = {}, {}, {}
    for where, found in times.items():
        others = [found[name] for name in found if name != ours]
        aimed_at = families[where] in ("Q-Former", "T5 bias")
        if aimed_at and ours in found and "sdpa-efficient" in found:
            against_padded[where] = found["sdpa-efficient"] / found[ours]
        if chosen.get(where) == ours and others:
            against_best[where] = min(others) / found[ours]
        backends = [found[name] for name in found if name in list(Backend)]
        if where in chosen and len(backends) > 1:
            against_backends[where] = min(backends) / found[chosen[where]]
    bandwidth = {
        f"{row.shape}, {row.passes}": row.of_copy_bandwidth
        for row in rows
        if row.kind == "elementwise" and row.contender == ours and row.of_copy_bandwidth
    }
    targets = (
        (
            "triton at least 1.5 times as fast as padded memory-efficient SDPA at the Q-Former's "
            "shapes and T5's with bias"
        ),
        "triton at least as fast as the best of the others wherever it is dispatched",
        "triton's elementwise kernels at 80 % or more of the copy bandwidth",
        (
            "the dispatch's choice nowhere more than 5 % slower than the best backend (the best "
            "backend's time / the choice's)"
        ),
    )
    figures = (against_padded, against_best, bandwidth, against_backends)
    return list(map(Verdict, targets, (1.5, 1.0, 0.8, 1 / 1.05), figures))
