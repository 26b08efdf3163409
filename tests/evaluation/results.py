"""Results for tests, without a model."""

from typing import Any

from ibtrain.evaluation.protocols import shipped_protocols
from ibtrain.evaluation.scoring import Result, best_constant, score_samples
from tests.evaluation.answers import answered
from tests.evaluation.pictures import encoded, noise


def result(name: str = "gqa", count: int = 14, dataset: str = "gqa", **values: Any) -> Result:
    """Of questions of which every seventh is answered wrong."""
    samples = tuple(
        answered(
            index,
            "blue" if index % 7 == 0 else "red",
            details={"question_type": ("color", "exists")[index % 2]},
        )
        for index in range(count)
    )
    samples = values.pop("samples", samples)
    protocol = shipped_protocols()[dataset]
    way_name = values.pop("way_name", next(iter(protocol.ways)))
    way = protocol.ways[way_name]
    score, by, notes = score_samples(samples, way)
    constant, by_type = best_constant(samples, way)
    standard = {
        "name": name,
        "protocol": protocol,
        "way_name": way_name,
        "way": way,
        "samples": samples,
        "score": score,
        "by": by,
        "best_constant": constant,
        "best_constant_by_type": by_type,
        "notes": notes,
        "images": {one.id: encoded(noise(one.index)) for one in samples},
    }
    return Result(**{**standard, **values})
