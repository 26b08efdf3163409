"""Records answered in the way that a protocol names."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import xxhash

from ibtrain.data.answering import Decoding, Way
from ibtrain.data.records import Record
from ibtrain.evaluation.answered import BEST_KEPT, Answered
from ibtrain.evaluation.candidates import Candidates
from ibtrain.evaluation.generation import DecodingSettings, generate, pixels_of
from ibtrain.evaluation.metric_base import MetricError
from ibtrain.evaluation.metrics import metric
from ibtrain.evaluation.ranking import RankingSettings, best_first, rank
from ibtrain.pretrained.opening import OpenedModel


@dataclass(frozen=True)
class Asked:
    """How the records of a result are answered.

    `vocabulary` is what `candidates: answers` stands for.
    """

    way: Way
    decoding: DecodingSettings
    vocabulary: tuple[str, ...] = ()

    def candidates(self, record: Record) -> Candidates:
        """What a record is to be answered with.

        Raises:
            MetricError: the record has no choices, or there is no vocabulary.
        """
        given = self.way.candidates
        if given == "answers":
            return self.vocabulary
        if given != "choices":
            assert not isinstance(given, str)
            return given
        choices = record.details.get("choices")
        if not isinstance(choices, list) or not choices:
            raise MetricError(
                f"{record.dataset} {record.id}: the list of candidates is empty: the record has no "
                "choices, and its protocol answers by choosing among them"
            )
        return [str(choice) for choice in choices]


def decoding_settings(decoding: Decoding, *, encoder_decoder: bool) -> DecodingSettings:
    """A protocol's decoding for a family of language models."""
    penalty = decoding.length_penalty
    if isinstance(penalty, dict):
        penalty = penalty.get("t5" if encoder_decoder else "llama", 1.0)
    return DecodingSettings(
        beams=decoding.beams,
        max_new_tokens=decoding.max_new_tokens,
        min_new_tokens=min(decoding.min_new_tokens, decoding.max_new_tokens),
        repetition_penalty=decoding.repetition_penalty,
        length_penalty=penalty,
    )


def answer(
    opened: OpenedModel, records: Sequence[tuple[int, Record]], asked: Asked
) -> list[Answered]:
    """Answers numbered records, those whose images cannot be read with `missing` set.

    Raises:
        ValueError: as `generate` and `rank`.
    """
    faults = {index: _fault(record, opened.image_size) for index, record in records}
    readable = [record for index, record in records if not faults[index]]
    answers = iter(_answers(opened, readable, asked))
    made = []
    for index, record in records:
        blank = _unanswered(index, record)
        if faults[index]:
            made.append(replace(blank, missing=faults[index]))
        else:
            made.append(replace(blank, **next(answers)))
    return made


def _fault(record: Record, size: int) -> str:
    """Why an image cannot be read; empty where all can."""
    try:
        for image in record.images:
            pixels_of(image, size)
    except ValueError as error:
        return str(error)
    return ""


def _unanswered(index: int, record: Record) -> Answered:
    # Where there are several instructions, the first is the one that evaluation uses.
    instruction = record.instructions[0]
    return Answered(
        index=index,
        id=record.id,
        form=record.form,
        question=record.plain or instruction,
        instruction=instruction,
        prediction="",
        answers=record.answers,
        details={key: value for key, value in record.details.items() if key != "choices"},
        group=xxhash.xxh64(b"".join(record.images)).hexdigest() if record.images else record.id,
    )


def _answers(opened: OpenedModel, records: Sequence[Record], asked: Asked) -> list[dict[str, Any]]:
    """Of each record the fields of Answered that an answer fills."""
    if not records:
        return []
    images = [list(record.images) for record in records]
    prompts = [record.instructions[0] for record in records]
    if asked.way.answering == "generate":
        texts = generate(opened, images, prompts, asked.decoding)
        return [{"prediction": text} for text in texts]
    candidates = [asked.candidates(record) for record in records]
    if asked.way.answering == "constrained":
        lists = [list(own) for own in candidates]
        texts = generate(opened, images, prompts, asked.decoding, lists)
        return [
            {"prediction": text, "candidates": _kept(own, asked)}
            for text, own in zip(texts, lists, strict=True)
        ]
    settings = RankingSettings(length=asked.way.length, prior=asked.way.prior)
    found: list[dict[str, Any]] = []
    for scored in rank(opened, images, prompts, candidates, settings):
        best = best_first(scored)
        kept = best[:BEST_KEPT] if asked.way.candidates == "answers" else scored
        found.append(
            {
                "prediction": best[0].text,
                "candidates": tuple(one.text for one in kept),
                "scores": tuple(one.score for one in kept),
            }
        )
    return found


def _kept(candidates: Sequence[str], asked: Asked) -> tuple[str, ...]:
    return tuple(candidates[:BEST_KEPT] if asked.way.candidates == "answers" else candidates)


def check_fit(record: Record, asked: Asked) -> None:
    """Tries the metric on a record before anything is answered.

    Raises:
        MetricError: the metric does not fit the data.
    """
    candidates: Sequence[str] = ()
    if asked.way.answering != "generate":
        given = asked.candidates(record)
        candidates = list(given)
        if isinstance(given, dict):
            foreign = [one.text for one in record.answers if one.text not in given]
            if foreign:
                raise MetricError(
                    f"{record.dataset} {record.id}: its answer {foreign[0]!r} is no label of "
                    f"{', '.join(map(repr, given))}"
                )
    if not record.answers or asked.way.metric == "CIDEr":
        return
    made = replace(
        _unanswered(0, record),
        candidates=tuple(candidates),
        scores=tuple(0.0 for _ in candidates) if asked.way.answering == "rank" else (),
    )
    metric(asked.way.metric).values([made])
