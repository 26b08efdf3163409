"""Answers to instructions about images.

Visual tokens are computed packed by our model; the language model's own `generate` goes on from
there, over rows padded on the left: [padding][visual tokens][instruction], so that padding never
stands between what belongs together (in the encoder of a T5, where positions are relative, either
side would do). A row's answer does not depend on the rows beside it.

Shapes: I images, Q query tokens, B prompts, L padded row length, D language-model width.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from random import Random

import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
)

from ibtrain.data.images import open_pixels, to_rgb
from ibtrain.defaults import ASK_BEAMS, ASK_NEW_TOKENS, ASK_REPETITION_PENALTY
from ibtrain.evaluation.candidates import token_trie
from ibtrain.evaluation.constrained import OnlyCandidates
from ibtrain.model.t5 import start_token
from ibtrain.pretrained.opening import OpenedModel
from ibtrain.tokenization import InstructionTokens

Picture = bytes | Image.Image
_EXIF_ORIENTATION = 0x0112
SMALLEST_TEMPERATURE = 1e-6
"""Below it logits divided by it leave the range of fp32."""


@dataclass(frozen=True)
class DecodingSettings:
    """How an answer is chosen.

    `length_penalty` counts with several beams only; `temperature`, `top_p` and `seed` only with
    `sample`. The repetition penalty is laid on tokens of the answer, as in LAVIS; transformers'
    InstructBLIP lays it on the prompt's tokens as well.
    """

    beams: int = 1
    max_new_tokens: int = 30
    min_new_tokens: int = 1
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    sample: bool = False
    temperature: float = 1.0
    top_p: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        for name, good, wanted in (
            ("beams", self.beams >= 1, "at least 1"),
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            (
                "min_new_tokens",
                0 <= self.min_new_tokens <= self.max_new_tokens,
                f"from 0 to max_new_tokens ({self.max_new_tokens})",
            ),
            ("repetition_penalty", 0 < self.repetition_penalty < inf, "above 0 and finite"),
            ("length_penalty", isfinite(self.length_penalty), "finite"),
            (
                "temperature",
                SMALLEST_TEMPERATURE <= self.temperature < inf,
                f"at least {SMALLEST_TEMPERATURE:g} and finite (for the likeliest answer: no "
                "sample)",
            ),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("seed", 0 <= self.seed < 2**63, "at least 0 and below 2**63"),
        ):
            if not good:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {wanted}")


ASKING = DecodingSettings(
    beams=ASK_BEAMS,
    max_new_tokens=ASK_NEW_TOKENS,
    repetition_penalty=ASK_REPETITION_PENALTY,
)
"""As the released models answer."""


@torch.inference_mode()
def generate(
    opened: OpenedModel,
    images: Sequence[Sequence[Picture]],
    prompts: Sequence[str],
    settings: DecodingSettings,
    allowed: Sequence[Sequence[str]] | None = None,
) -> list[str]:
    """One answer per prompt.

    Args:
        opened: the model.
        images: for each prompt its images: none, one, or several (the frames of a video), whose
            visual tokens are joined in order; encoded, or opened by PIL. One that its EXIF data
            calls rotated is turned upright first.
        prompts: instructions, tokenized as in training (a longer one loses its beginning).
        settings: how answers are chosen. A sampled answer depends on the prompt, the images and
            the seed alone, so prompts are then answered one by one.
        allowed: for each prompt the answers that may come out, and no other can; limits of length
            are then theirs. None: any.

    Raises:
        ValueError: when there are not as many lists of images as prompts, an image is damaged,
            there is neither an image nor a token to begin with, or as `candidates.token_trie`.
    """
    if not prompts and not images:
        return []
    if settings.sample and len(prompts) > 1:
        return [
            generate(
                opened,
                [own],
                [prompts[index]],
                settings,
                None if allowed is None else [allowed[index]],
            )[0]
            for index, own in enumerate(images)
        ]
    tries = None
    processors = _repetition(settings)
    if allowed is not None:
        tries = [token_trie(opened.tokenizer, tuple(answers)) for answers in allowed]
        begin = 1 if opened.model.config.text_config.is_encoder_decoder else 0
        own_tries = [trie for trie, _ in tries]
        processors.append(OnlyCandidates(own_tries, settings.beams, begin, opened.tokenizer.end_id))
        longest = max(max(trie.depths) for trie in own_tries) + 1
        settings = replace(settings, min_new_tokens=0, max_new_tokens=longest)
    embeddings_BLD, mask_BL = prompt_rows(opened, images, prompts)
    devices = [opened.device] if opened.device.type == "cuda" else []
    with torch.random.fork_rng(devices, enabled=settings.sample):
        if settings.sample:
            torch.manual_seed(settings.seed)
        ids = opened.model.language_model.generate(
            inputs_embeds=embeddings_BLD,
            attention_mask=mask_BL,
            generation_config=_generation_config(opened, settings),
            logits_processor=processors,
        )
    if tries is not None:
        return [
            _answer_of(opened, row, sequences)
            for row, (_, sequences) in zip(ids.tolist(), tries, strict=True)
        ]
    texts = opened.tokenizer.language.batch_decode(ids, skip_special_tokens=True)
    return [text.strip() for text in texts]


def _answer_of(opened: OpenedModel, row: list[int], sequences: dict[str, tuple[int, ...]]) -> str:
    """The allowed answer that a row of tokens is."""
    if opened.model.config.text_config.is_encoder_decoder:
        row = row[1:]
    end = opened.tokenizer.end_id
    tokens = tuple(row[: row.index(end)] if end in row else row)
    texts = {sequence: text for text, sequence in reversed(list(sequences.items()))}
    return texts[tokens]


def pixels_of(picture: Picture, size: int) -> Tensor:
    """One image as the model takes it: squashed to the square, normalised, fp32 [3, size, size].

    Raises:
        ValueError: when it is damaged or no image.
    """
    if isinstance(picture, Image.Image):
        picture = _encoded(picture)
    try:
        with Image.open(io.BytesIO(picture)) as image:
            if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
                picture = _encoded(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable image: {error}") from error
    return open_pixels(picture, size, "resize", Random(0))


def _encoded(image: Image.Image) -> bytes:
    """The image without loss, upright."""
    buffer = io.BytesIO()
    to_rgb(ImageOps.exif_transpose(image)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def prompt_rows(
    opened: OpenedModel, images: Sequence[Sequence[Picture]], prompts: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """The language model's input [B, L, D], padded on the left, and its mask [B, L].

    Raises:
        ValueError: as `generate`.
    """
    if len(images) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts come with {len(images)} lists of images")
    tokens = [opened.tokenizer.instruction(prompt) for prompt in prompts]
    device = opened.device
    embed = opened.model.language_model.get_input_embeddings()
    visual = _visual_rows(opened, images, tokens)
    rows = []
    for own, instruction in zip(visual, tokens, strict=True):
        if not len(own) and not instruction.language:
            raise ValueError("an empty prompt without an image leaves nothing to answer")
        text = embed(torch.tensor(instruction.language, dtype=torch.long, device=device))
        rows.append(torch.cat([own.to(text.dtype), text]))
    longest = max(len(row) for row in rows)
    embeddings_BLD = rows[0].new_zeros(len(rows), longest, rows[0].shape[-1])
    mask_BL = torch.zeros(len(rows), longest, dtype=torch.long, device=device)
    for index, row in enumerate(rows):
        embeddings_BLD[index, longest - len(row) :] = row
        mask_BL[index, longest - len(row) :] = 1
    return embeddings_BLD, mask_BL


def _visual_rows(
    opened: OpenedModel, images: Sequence[Sequence[Picture]], tokens: Sequence[InstructionTokens]
) -> list[Tensor]:
    """For each prompt the visual tokens of all its images [images*Q, D]."""
    counts = [len(own) for own in images]
    width = opened.model.config.text_config.hidden_size
    if not sum(counts):
        return [torch.zeros(0, width, device=opened.device) for _ in counts]
    pixels_ICHW = torch.stack(
        [pixels_of(picture, opened.image_size) for own in images for picture in own]
    )
    texts = [
        instruction.qformer
        for instruction, count in zip(tokens, counts, strict=True)
        for _ in range(count)
    ]
    lengths = torch.tensor([0, *(len(text) for text in texts)])
    visual_IQD = opened.model.visual_tokens(
        pixels_ICHW.to(opened.device),
        torch.tensor(
            [token for text in texts for token in text], dtype=torch.long, device=opened.device
        ),
        lengths.cumsum(0).to(torch.int32).to(opened.device),
        max(len(text) for text in texts),
    )
    return [part.flatten(0, 1) for part in torch.split(visual_IQD, counts)]


def _repetition(settings: DecodingSettings) -> LogitsProcessorList:
    """The repetition penalty as a processor.

    Set in the configuration, transformers 5 spares as many of a row's first new tokens as the row
    has padding.
    """
    if settings.repetition_penalty == 1.0:
        return LogitsProcessorList()
    return LogitsProcessorList([RepetitionPenaltyLogitsProcessor(settings.repetition_penalty)])


def _generation_config(opened: OpenedModel, settings: DecodingSettings) -> GenerationConfig:
    """The settings in transformers' form; nothing is left to what a base brings along."""
    language = opened.tokenizer.language
    end = opened.tokenizer.end_id
    chosen = {
        "num_beams": settings.beams,
        "max_new_tokens": settings.max_new_tokens,
        "min_new_tokens": settings.min_new_tokens,
        "do_sample": settings.sample,
        "bos_token_id": end if language.bos_token_id is None else language.bos_token_id,
        "eos_token_id": end,
        "pad_token_id": end if language.pad_token_id is None else language.pad_token_id,
    }
    config = opened.model.config.text_config
    if config.is_encoder_decoder:
        chosen["decoder_start_token_id"] = start_token(config)
    if settings.beams > 1:
        chosen["length_penalty"] = settings.length_penalty
    if settings.sample:
        chosen |= {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    return GenerationConfig(**chosen)
