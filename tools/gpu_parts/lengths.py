"""Micro-batches with the lengths of the paper's mixture, as ours and as transformers take them.

No dataset is needed: lengths are drawn, tokens and pixels are random.
"""

import math
import random
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import InstructBlipConfig

from ibtrain.batch import Batch
from ibtrain.data import catalog

SEED = 20230511
# Mean tokens of a Llama tokenizer for (instruction, answer): reckoned from the words that the
# datasets' papers publish, 1.3 tokens a word, and from our templates. LLaVA's answers are those of
# its three files (LLaVA, arXiv 2304.08485, appendix); OCR tokens stand in TextCaps' instruction.
MEANS = {
    "coco_caption": (9, 14),
    "web_capfilt": (9, 13),
    "textcaps": (60, 17),
    "vqav2": (20, 3),
    "okvqa": (22, 3),
    "aokvqa": (40, 10),
    "ocr_vqa": (24, 6),
    "vqav2_question_generation": (24, 9),
    "okvqa_question_generation": (24, 11),
    "aokvqa_question_generation": (24, 12),
    "llava_conversation": (45, 70),
    "llava_detail": (16, 135),
    "llava_reasoning": (22, 150),
}
FACTORS = {"okvqa": 2.0}
SPREAD = 0.4
"""Of the logarithm of a length."""
LONGEST = (128, 257)
"""Instruction and answer tokens, the end token among them (the shipped recipes)."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of the samples of one micro-batch, visual tokens apart."""

    instructions: tuple[int, ...]
    answers: tuple[int, ...]

    @property
    def samples(self) -> int:
        """How many."""
        return len(self.answers)

    def tokens(self, queries: int) -> int:
        """Rows of a Llama: the last answer token predicts nothing and is not fed."""
        return sum(self.instructions) + sum(self.answers) + (queries - 1) * self.samples

    def padded(self, queries: int) -> int:
        """The same where every sample is as long as the longest, and its last token is fed."""
        each = zip(self.instructions, self.answers, strict=True)
        return self.samples * (queries + max(sum(pair) for pair in each))


def drawn(samples: int, number: int, most: tuple[int, int] = LONGEST) -> Lengths:
    """Lengths of micro-batch `number`: datasets by the square root of their sizes."""
    draw = random.Random(f"{SEED}/{number}")
    sizes = {name: next(iter(catalog.get(name).splits.values())).size for name in MEANS}
    weights = [math.sqrt(sizes[name] or 1) * FACTORS.get(name, 1.0) for name in MEANS]
    names = draw.choices(list(MEANS), weights, k=samples)
    columns = [
        tuple(
            min(most[column], max(2, round(MEANS[name][column] * draw.lognormvariate(0, SPREAD))))
            for name in names
        )
        for column in range(2)
    ]
    return Lengths(*columns)


def longest(samples: int, most: tuple[int, int] = LONGEST) -> Lengths:
    """Every sample as long as a recipe allows."""
    return Lengths((most[0],) * samples, (most[1],) * samples)


def packed_batch(lengths: Lengths, config: InstructBlipConfig, device: torch.device) -> Batch:
    """A micro-batch as ours takes it."""
    queries, side = config.num_query_tokens, config.vision_config.image_size
    prompts = [queries + length for length in lengths.instructions]
    rows = [prompt + answer - 1 for prompt, answer in zip(prompts, lengths.answers, strict=True)]
    begins = [0, *accumulate(rows)]
    generator = torch.Generator().manual_seed(SEED)

    def ids(count: int, vocabulary: int) -> Tensor:
        return torch.randint(3, vocabulary, (count,), generator=generator)

    def spans(starts: list[int], counts: Any) -> Tensor:
        return torch.cat(
            [torch.arange(at, at + count) for at, count in zip(starts, counts, strict=True)]
        )

    def cumulative(counts: Any) -> Tensor:
        return torch.tensor([0, *accumulate(counts)], dtype=torch.int32)

    answer_starts = [begin + prompt - 1 for begin, prompt in zip(begins[:-1], prompts, strict=True)]
    batch = Batch(
        pixels_ICHW=torch.randn(lengths.samples, 3, side, side, generator=generator),
        text_ids_L=ids(sum(lengths.instructions), config.qformer_config.vocab_size),
        cu_text_I1=cumulative(lengths.instructions),
        max_text=max(lengths.instructions),
        token_ids_T=ids(sum(rows), config.text_config.vocab_size - 1),
        positions_T=spans([0] * len(rows), rows),
        cu_tokens_B1=cumulative(rows),
        max_tokens=max(rows),
        visual_rows_V=spans(begins[:-1], [queries] * len(rows)),
        answer_rows_A=spans(answer_starts, lengths.answers),
        answer_ids_A=ids(sum(lengths.answers), config.text_config.vocab_size - 1),
        answer_sample_A=torch.repeat_interleave(
            torch.arange(lengths.samples), torch.tensor(lengths.answers)
        ),
        cu_answers_B1=cumulative(lengths.answers),
        max_answer=max(lengths.answers),
        prompt_rows_P=spans(begins[:-1], prompts),
        cu_prompts_B1=cumulative(prompts),
        max_prompt=max(prompts),
        datasets=("drawn",) * lengths.samples,
        sample_ids=tuple(map(str, range(lengths.samples))),
    )
    return batch.to(device)


def padded_batch(
    lengths: Lengths, config: InstructBlipConfig, device: torch.device
) -> dict[str, Tensor]:
    """The same micro-batch as transformers' InstructBLIP over a Llama takes it, padded on the
    right, with labels on the answers alone.
    """
    queries, side = config.num_query_tokens, config.vision_config.image_size
    generator = torch.Generator().manual_seed(SEED)
    instructions, answers = (torch.tensor(each) for each in (lengths.instructions, lengths.answers))
    rows = queries + instructions + answers
    place = torch.arange(int(rows.max()))
    read = torch.arange(max(lengths.instructions)) < instructions[:, None]
    vocabulary = config.text_config.vocab_size - 1
    ids = torch.randint(3, vocabulary, (lengths.samples, len(place)), generator=generator)
    ids[:, :queries] = config.image_token_index
    text = torch.randint(3, config.qformer_config.vocab_size, read.shape, generator=generator)
    is_answer = (place >= (queries + instructions)[:, None]) & (place < rows[:, None])
    pixels = torch.randn(lengths.samples, 3, side, side, generator=generator)
    made = {
        "pixel_values": pixels,
        "qformer_input_ids": text.masked_fill(~read, 0),
        "qformer_attention_mask": read.long(),
        "input_ids": ids,
        "attention_mask": (place < rows[:, None]).long(),
        "labels": ids.masked_fill(~is_answer, -100),
    }
    return {name: tensor.to(device) for name, tensor in made.items()}
