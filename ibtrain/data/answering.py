"""How a dataset is evaluated: the way of answering and the metric, as a dataset's YAML names them.

Only the form is here; evaluation/ computes. A dataset's file has one way or several:

    evaluation: {answering: generate, metric: VQA accuracy}

    evaluation:
      direct: {forms: [visual_question_answering], answering: generate, metric: VQA accuracy}
      choice: {forms: [multiple_choice], answering: rank, candidates: choices, metric: accuracy}

`answering` is generate, rank (the candidates by their log-probability) or constrained (generation
that can give nothing but a candidate). `candidates` are "choices" (each record's own), "answers"
(a vocabulary that is given with --vocabulary, such as the answers of the training split), a list,
or labels with the texts that stand for each: {"yes": ["yes", "true"], "no": ["no", "false"]} (in
quotes: YAML takes a bare yes for a truth value).
"""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

METRICS = (
    "exact match",
    "exact match ignoring case",
    "VQA accuracy",
    "VizWiz accuracy",
    "direct-answer accuracy",
    "iVQA accuracy",
    "top-1 accuracy",
    "accuracy",
    "multiple-choice accuracy",
    "AUC",
    "MRR",
    "CIDEr",
)
_RANKED = ("AUC", "MRR")
_OF_CHOICES = ("accuracy", "multiple-choice accuracy")
MAIN = ""
"""The name of the only way."""

Candidates = Literal["none", "choices", "answers"] | list[str] | dict[str, list[str]]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Decoding(_Section):
    """How answers are generated; `length_penalty` may differ by the language model's family."""

    beams: int = Field(default=1, ge=1, le=64)
    max_new_tokens: int = Field(default=10, ge=1, le=4096)
    min_new_tokens: int = Field(default=1, ge=0)
    repetition_penalty: float = Field(default=1.0, gt=0)
    length_penalty: float | dict[Literal["llama", "t5"], float] = 1.0


class Way(_Section):
    """One way of answering the records of some forms (None: of all), and its metric."""

    answering: Literal["generate", "rank", "constrained"] = "generate"
    metric: str
    forms: tuple[str, ...] | None = None
    candidates: Candidates = "none"
    decoding: Decoding = Decoding()
    length: Literal["sum", "tokens", "characters"] = "sum"
    prior: Literal["none", "image", "prompt"] = "none"

    @model_validator(mode="after")
    def _fits(self) -> "Way":
        if self.metric not in METRICS:
            near = get_close_matches(self.metric, METRICS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(METRICS)}"
            raise ValueError(f"metric: there is no {self.metric!r}; {hint}")
        if self.answering == "generate" and self.candidates != "none":
            raise ValueError(
                "candidates: generate takes none; answering must be rank or constrained"
            )
        if self.answering != "generate" and self.candidates == "none":
            raise ValueError(
                f"candidates: {self.answering} needs some: choices, answers, a list, or labels"
            )
        if self.metric in _RANKED and self.answering != "rank":
            raise ValueError(
                f"metric: {self.metric} is of ranks, and answering is {self.answering}; it must be "
                "rank"
            )
        if self.metric == "AUC" and not (
            isinstance(self.candidates, dict) and len(self.candidates) == 2
        ):
            raise ValueError("candidates: AUC needs two labels, the positive one first")
        if self.metric == "CIDEr" and self.answering == "rank":
            raise ValueError("metric: CIDEr is of captions, which are generated, not ranked")
        if self.metric in _OF_CHOICES and self.answering == "generate":
            raise ValueError(
                f"metric: {self.metric} is of choices, and answering is generate; rank them, or "
                "take exact match"
            )
        if not self.candidates or (
            isinstance(self.candidates, dict) and not all(self.candidates.values())
        ):
            raise ValueError("candidates: the list is empty; give at least one")
        return self


Ways = dict[str, Way]
_WAYS: TypeAdapter[Ways] = TypeAdapter(Ways)


def check_ways(section: Mapping[str, Any], place: str) -> Ways:
    """The ways of a section `evaluation`.

    Args:
        section: one way, or ways by name.
        place: the file, for messages.

    Raises:
        ValueError: naming `place`, the key and what is wrong.
    """
    content = dict(section)
    if not content:
        raise ValueError(f"{place}: evaluation: names no way of answering")
    if not all(isinstance(value, dict) for value in content.values()):
        content = {MAIN: content}
    try:
        return _WAYS.validate_python(content)
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            key = ".".join(str(part) for part in fault["loc"] if part != MAIN)
            text = fault["msg"].removeprefix("Value error, ")
            if fault["type"] == "extra_forbidden":
                near = get_close_matches(str(fault["loc"][-1]), list(Way.model_fields), n=1)
                text = f"unknown key{f'; did you mean {near[0]!r}?' if near else ''}"
            lines.append(f"{key}: {text}" if key else text)
        said = "; ".join(dict.fromkeys(lines))
        raise ValueError(f"{place}: evaluation: {said}" if place else said) from error


def section_of(evaluation: Mapping[str, Any], metric: str) -> dict[str, Any] | None:
    """What a dataset's file says of evaluation: its section, or one made of a metric that is known
    here and of generated answers; None where there is neither.
    """
    if evaluation:
        return dict(evaluation)
    generated = {"answering": "generate", "metric": metric}
    try:
        check_ways(generated, "")
    except ValueError:
        return None
    return generated
