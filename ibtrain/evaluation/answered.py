"""A record with what a model answered: what metrics read and files hold."""

from dataclasses import asdict, dataclass, field
from typing import Any

from ibtrain.data.records import Answer

BEST_KEPT = 10
"""Of a vocabulary's candidates; all of a record's own are kept."""


@dataclass(frozen=True)
class Answered:
    """One answered record.

    `candidates` and `scores` are of a ranking: all of a record's own in their order, or of a
    vocabulary the best. `group` is the same for records on one picture, which are not independent.
    `missing` tells why there is no answer, where its images could not be read.
    """

    index: int
    id: str
    form: str
    question: str
    instruction: str
    prediction: str
    answers: tuple[Answer, ...]
    details: dict[str, Any] = field(default_factory=dict)
    candidates: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    group: str = ""
    missing: str = ""

    @property
    def texts(self) -> tuple[str, ...]:
        """The accepted answers without their weights."""
        return tuple(answer.text for answer in self.answers)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Answered":
        """Of what `as_json` gave; ValueError where it is something else."""
        try:
            answers = tuple(Answer(one["text"], float(one["weight"])) for one in value["answers"])
            lists = {key: tuple(value[key]) for key in ("candidates", "scores")}
            made = cls(**{**value, **lists, "answers": answers})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no answered record: {error}") from error
        return made
