"""Samples to packed micro-batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ibtrain.batch import Batch
from ibtrain.tokenization import InstructionTokenizer


@dataclass(frozen=True)
class Sample:
    """One image (or several frames, or none), one instruction, one answer.

    `pixels_ICHW` is fp32 [images, 3, S, S], zero images for text alone.
    """

    pixels_ICHW: Tensor
    instruction: str
    answer: str
    dataset: str
    id: str


def collate(
    samples: Sequence[Sample],
    tokenizer: InstructionTokenizer,
    *,
    query_tokens: int,
    image_size: int,
) -> Batch:
    """Packs samples end to end: [visual tokens][instruction][answer, end token], no padding.

    Args:
        samples: at least one.
        tokenizer: of the base.
        query_tokens: visual tokens per image (32 in the released models).
        image_size: side of the dummy image that a batch without images gets.

    Raises:
        ValueError: when there are no samples, or one has nothing before its answer.
    """
    if not samples:
        raise ValueError("a micro-batch needs at least one sample")
    token_ids: list[int] = []
    text_ids: list[int] = []
    text_lengths: list[int] = []
    lengths: list[int] = []
    answer_lengths: list[int] = []
    prompt_lengths: list[int] = []
    prompt_rows: list[int] = []
    visual_rows: list[int] = []
    answer_rows: list[int] = []
    answer_ids: list[int] = []
    answer_sample: list[int] = []
    for index, sample in enumerate(samples):
        instruction = tokenizer.instruction(sample.instruction)
        answer = tokenizer.answer(sample.answer)
        images = sample.pixels_ICHW.shape[0]
        visual = images * query_tokens
        begin = len(token_ids)
        if not visual and not instruction.language:
            raise ValueError(
                f"sample {sample.id!r} of {sample.dataset} has neither an image nor instruction "
                "tokens: nothing predicts its answer"
            )
        answer_begin = begin + visual + len(instruction.language)
        visual_rows += range(begin, begin + visual)
        # The last answer token (the end token) predicts nothing, so it is not fed.
        token_ids += [tokenizer.end_id] * visual + list(instruction.language) + list(answer[:-1])
        answer_rows += range(answer_begin - 1, answer_begin - 1 + len(answer))
        answer_ids += answer
        answer_sample += [index] * len(answer)
        answer_lengths.append(len(answer))
        prompt_rows += range(begin, answer_begin)
        prompt_lengths.append(answer_begin - begin)
        lengths.append(len(token_ids) - begin)
        for _ in range(images):
            text_ids += instruction.qformer
            text_lengths.append(len(instruction.qformer))
    pixels = torch.cat([sample.pixels_ICHW for sample in samples])
    if pixels.shape[0] == 0:
        # The dummy image. Its instruction is one token, not none: text layers must run as well.
        pixels = torch.zeros(1, 3, image_size, image_size)
        text_ids, text_lengths = [0], [1]
    return Batch(
        pixels_ICHW=pixels,
        text_ids_L=torch.tensor(text_ids, dtype=torch.long),
        cu_text_I1=_cumulative(text_lengths),
        max_text=max(text_lengths),
        token_ids_T=torch.tensor(token_ids, dtype=torch.long),
        positions_T=torch.cat([torch.arange(length) for length in lengths]),
        cu_tokens_B1=_cumulative(lengths),
        max_tokens=max(lengths),
        visual_rows_V=torch.tensor(visual_rows, dtype=torch.long),
        answer_rows_A=torch.tensor(answer_rows, dtype=torch.long),
        answer_ids_A=torch.tensor(answer_ids, dtype=torch.long),
        answer_sample_A=torch.tensor(answer_sample, dtype=torch.long),
        cu_answers_B1=_cumulative(answer_lengths),
        max_answer=max(answer_lengths),
        prompt_rows_P=torch.tensor(prompt_rows, dtype=torch.long),
        cu_prompts_B1=_cumulative(prompt_lengths),
        max_prompt=max(prompt_lengths),
        datasets=tuple(sample.dataset for sample in samples),
        sample_ids=tuple(sample.id for sample in samples),
    )


def _cumulative(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
