"""The same samples for both sides: packed for our model, padded for transformers'."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import InstructBlipConfig

from ibtrain.batch import Batch
from ibtrain.data.mixture.collate import Sample, collate
from tests.tiny import IdTokenizer


@dataclass(frozen=True)
class Lengths:
    """How much of everything a drawn sample has; `answer` is without the end token."""

    images: int
    language: int
    qformer: int
    answer: int


MIXED = (
    Lengths(images=1, language=7, qformer=4, answer=2),
    Lengths(images=1, language=2, qformer=11, answer=6),
    Lengths(images=1, language=12, qformer=1, answer=0),
    Lengths(images=1, language=5, qformer=5, answer=3),
    Lengths(images=1, language=1, qformer=2, answer=1),
)
EQUAL = (Lengths(images=1, language=4, qformer=3, answer=2),) * 4
FRAMES_AND_TEXT = (
    Lengths(images=1, language=6, qformer=3, answer=1),
    Lengths(images=0, language=5, qformer=4, answer=3),
    Lengths(images=4, language=3, qformer=6, answer=2),
)


def draw_samples(
    config: InstructBlipConfig, lengths: tuple[Lengths, ...], seed: int = 0
) -> list[Sample]:
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int, vocabulary: int) -> str:
        drawn = torch.randint(3, vocabulary - 1, (count,), generator=generator)
        return " ".join(map(str, drawn.tolist()))

    side = config.vision_config.image_size
    words, text_words = config.text_config.vocab_size, config.qformer_config.vocab_size
    return [
        Sample(
            pixels_ICHW=torch.randn(of.images, 3, side, side, generator=generator),
            instruction=f"{ids(of.language, words)} | {ids(of.qformer, text_words)}",
            answer=ids(of.answer, words),
            dataset="drawn",
            id=str(index),
        )
        for index, of in enumerate(lengths)
    ]


def pack(config: InstructBlipConfig, samples: list[Sample]) -> Batch:
    return collate(
        samples,
        IdTokenizer(),
        query_tokens=config.num_query_tokens,
        image_size=config.vision_config.image_size,
    )


def pad(config: InstructBlipConfig, samples: list[Sample]) -> dict[str, Tensor]:
    """Right-padded rows as transformers' model takes: [image tokens][instruction][answer, end], or
    for an encoder-decoder [image tokens][instruction] with the answer as labels."""
    texts = [
        torch.tensor(IdTokenizer().instruction(sample.instruction).qformer, dtype=torch.long)
        for sample in samples
        for _ in range(sample.pixels_ICHW.shape[0])
    ]
    return pad_language(config, samples) | {
        "pixel_values": torch.cat([sample.pixels_ICHW for sample in samples]),
        "qformer_input_ids": pad_sequence(texts, batch_first=True),
        "qformer_attention_mask": _mask(texts),
    }


def pad_language(config: InstructBlipConfig, samples: list[Sample]) -> dict[str, Tensor]:
    """The language model's share of `pad`."""
    rows, labels = [], []
    for sample in samples:
        answer = IdTokenizer().answer(sample.answer)
        images = sample.pixels_ICHW.shape[0]
        prompt = [config.image_token_index] * (images * config.num_query_tokens)
        prompt += IdTokenizer().instruction(sample.instruction).language
        if config.text_config.is_encoder_decoder:
            rows.append(torch.tensor(prompt))
            labels.append(torch.tensor(answer))
            continue
        rows.append(torch.tensor([*prompt, *answer]))
        labels.append(torch.tensor([*([-100] * len(prompt)), *answer]))
    return {
        "input_ids": pad_sequence(rows, batch_first=True),
        "attention_mask": _mask(rows),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }


def _mask(sequences: list[Tensor]) -> Tensor:
    return pad_sequence([torch.ones_like(ids) for ids in sequences], batch_first=True)


def answer_logits(config: InstructBlipConfig, logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """transformers' logits of the positions that predict a label, sample after sample."""
    if config.text_config.is_encoder_decoder:
        return logits_BTV[labels_BT != -100]
    return logits_BTV[:, :-1][labels_BT[:, 1:] != -100]


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Of every parameter; zeros where the loss does not depend on one."""
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(named.items(), found, strict=True)
    }


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of what is wanted; 0 where both are 0."""
    got, wanted = got.detach().double(), wanted.detach().double()
    return float((got - wanted).norm() / wanted.norm()) if not torch.equal(got, wanted) else 0.0


def assert_same_gradients(
    got: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float
) -> None:
    """Every tensor within `tolerance`, relative.

    A key bias moves all scores of a row alike, so its true gradient is 0 and what is computed is
    rounding alone: it is held against the gradient of the key weight beside it.
    """
    assert got.keys() == wanted.keys()
    worst = {}
    for name, gradient in got.items():
        if name.startswith("qformer.") and name.endswith("attention.key.bias"):
            scale = wanted[name.replace("key.bias", "key.weight")].norm()
            worst[name] = float((gradient - wanted[name]).norm() / scale)
        else:
            worst[name] = relative_error(gradient, wanted[name])
    wrong = {name: error for name, error in worst.items() if not error <= tolerance}
    assert not wrong, f"{len(wrong)} of {len(got)} gradients differ: {wrong}"
