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

    `form` names the templates and the prompt, whose slots `slots` fills ({"question": ...}); a
    dataset whose instructions are left untouched (LLaVA) gives them in `instructions` instead.
    `image` is an image file, `images` are several in order, `video` a video file or a folder of
    frames; text alone has none of them. `answers` is empty where they are not public. `details` is
    carried into the record for evaluation (question type, options, ...). `annotation` says where
    in the files it was read from: the examples of one annotation share it and stand together, and
    are kept, renamed or left out together.
    """

    dataset: str
    task: str
    id: str
    image: Path | None
    answers: tuple[Answer, ...]
    form: str = ""
    slots: dict[str, str] = field(default_factory=dict)
    instructions: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    video: Path | None = None
    images: tuple[Path, ...] = ()
    annotation: str = field(default="", compare=False)


@dataclass(frozen=True)
class Record:
    """One sample on disk.

    `images` holds encoded images (JPEG or PNG): one, several or the frames of a video in order, or
    none for text alone. `instructions` is every rendered variant, the first the prompt of
    evaluation; reading chooses one by (seed, epoch, id). `plain` is the bare input without any
    instruction (a question, its options; empty for captioning), for multitask training (paper,
    figure 4).
    """

    dataset: str
    task: str
    id: str
    images: tuple[bytes, ...]
    instructions: tuple[str, ...]
    answers: tuple[Answer, ...]
    form: str = ""
    plain: str = ""
    details: dict[str, Any] = field(default_factory=dict)
