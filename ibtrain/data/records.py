"""What passes along the data path: Example (as read) -> Record (as stored in a shard).

A shard holds the instruction-formatted record, so any reader can use it without our templates.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Answer:
    """One accepted answer. `weight` is relative (annotator count for VQA, 1.0 otherwise), > 0."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class Example:
    """One annotation as its reader found it, before any instruction is rendered.

    `slots` is what templates fill ({"question": ..., "options": ...}); a dataset whose instructions
    are left untouched (LLaVA) gives them in `instructions` instead. `image` is None for text alone.
    `details` is carried into the record for evaluation (question type, annotator answers, ...).
    """

    dataset: str
    task: str
    id: str
    image: Path | None
    answers: tuple[Answer, ...]
    slots: dict[str, str] = field(default_factory=dict)
    instructions: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One sample on disk. `image` holds encoded bytes (JPEG or PNG), empty for text alone;
    `instructions` every rendered variant, of which reading chooses one by (seed, epoch, id).
    """

    dataset: str
    task: str
    id: str
    image: bytes
    instructions: tuple[str, ...]
    answers: tuple[Answer, ...]
    details: dict[str, Any] = field(default_factory=dict)
