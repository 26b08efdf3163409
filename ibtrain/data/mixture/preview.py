"""`ibtrain data mixture RECIPE --preview`: what a recipe trains on, on a page one can look at.

Samples are read, drawn and augmented by the code that training uses, so the page shows what the
model would see. One shard of each dataset is opened, whatever the size of the mixture.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
import torch

from ibtrain.config import Recipe
from ibtrain.data.images import CLIP_MEAN, CLIP_STD
from ibtrain.data.mixture.collate import Sample
from ibtrain.data.mixture.preview_page import (
    MOST_SAMPLES,
    ShownDataset,
    ShownSample,
    ShownText,
    page,
)
from ibtrain.data.mixture.reader import MixtureReader
from ibtrain.data.mixture.sampling import augmentation_for, draw_sample
from ibtrain.data.mixture.shares import Mixture, MixtureStratum
from ibtrain.data.records import Record
from ibtrain.defaults import PREVIEW_SAMPLES
from ibtrain.pages import check_writable, write_page

_AUGMENTATION = {
    "resize": "plain resize",
    "crop": "random crop, not mirrored",
    "crop_flip": "random crop, mirrored every other time",
}


def write_preview(
    path: Path,
    recipe: Recipe,
    mixture: Mixture,
    samples: int = PREVIEW_SAMPLES,
    seed: int | None = None,
) -> None:
    """Writes the page atomically.

    Args:
        path: the HTML file to write.
        recipe: says how samples are drawn.
        mixture: resolved from it.
        samples: how many are shown of each dataset.
        seed: chooses them, and draws instruction, answer and augmentation; the recipe's by default.

    Raises:
        ValueError: the number of samples is absurd, or the folder of `path` is not there.
        OSError: the page, or an unpacked shard, cannot be written.
    """
    if not 1 <= samples <= MOST_SAMPLES:
        raise ValueError(f"{samples} samples of each dataset; 1 to {MOST_SAMPLES} can be shown")
    check_writable(path)
    if seed is not None:
        recipe = recipe.model_copy(update={"seed": seed})
    with _cache(recipe) as cache:
        datasets = shown_datasets(recipe, mixture, samples, cache)
    write_page(path, page(recipe.name, _facts(recipe, mixture), datasets))


def shown_datasets(
    recipe: Recipe, mixture: Mixture, samples: int, cache: Path
) -> list[ShownDataset]:
    """Each dataset with some of its samples, as `write_preview` chooses and draws them.

    Args:
        recipe: says how samples are drawn.
        mixture: resolved from it.
        samples: how many of each dataset.
        cache: directory that shards are unpacked to.

    Raises:
        OSError: the cache cannot be written.
    """
    reader = MixtureReader(recipe, mixture, cache)
    return [
        _shown_dataset(reader, recipe, mixture, number, samples)
        for number in range(len(mixture.datasets))
    ]


@contextmanager
def _cache(recipe: Recipe) -> Iterator[Path]:
    """The recipe's own cache, or one that is removed again."""
    if recipe.data.cache is not None:
        yield recipe.data.cache
        return
    with tempfile.TemporaryDirectory(prefix="ibtrain-preview-") as directory:
        yield Path(directory)


def _facts(recipe: Recipe, mixture: Mixture) -> list[tuple[str, str]]:
    total = sum(dataset.size for dataset in mixture.datasets)
    return [
        ("samples", f"{total:,}"),
        ("drawn per epoch", f"{mixture.epoch_samples:,}"),
        ("global batch", f"{mixture.global_batch:,}"),
        ("steps per epoch", f"{mixture.epoch_samples // mixture.global_batch:,}"),
        ("balance", recipe.data.balance),
        ("drawn per", mixture.draw),
        ("prompts", recipe.data.prompts),
        ("images", f"{recipe.data.image_size} x {recipe.data.image_size}"),
        ("seed", str(recipe.seed)),
    ]


def _shown_dataset(
    reader: MixtureReader, recipe: Recipe, mixture: Mixture, number: int, samples: int
) -> ShownDataset:
    dataset = mixture.datasets[number]
    own = [
        (index, stratum)
        for index, (of, stratum) in enumerate(mixture.strata())
        if of == number and stratum.draws
    ]
    shown: list[ShownSample] = []
    troubles: list[str] = []
    task = ""
    for index, sample in _samples(own, samples, Random(f"preview/{recipe.seed}/{dataset.name}")):
        try:
            record = reader.record(index, sample)
            shown.append(_shown_sample(record, recipe))
            task = record.task
        except ValueError as error:
            troubles.append(str(error))
    if not own:
        troubles.append("the recipe draws no sample of it")
    return ShownDataset(
        name=dataset.name,
        task=task,
        size=dataset.size,
        share=dataset.share,
        samples_per_epoch=dataset.samples_per_epoch,
        forms=tuple(
            (stratum.form, stratum.draws) for _, stratum in own if stratum.form is not None
        ),
        samples=tuple(shown),
        trouble=f"{len(troubles)} cannot be shown: {troubles[0]}" if troubles else "",
    )


def _samples(
    strata: list[tuple[int, MixtureStratum]], samples: int, source: Random
) -> Iterator[tuple[int, int]]:
    """(stratum, sample) pairs, from one shard of each stratum, in stored order."""
    for turn, (index, stratum) in enumerate(strata):
        wanted = len(range(turn, samples, len(strata)))
        ends = np.cumsum(stratum.shard_samples)
        shard = int(np.searchsorted(ends, source.randrange(stratum.size), "right"))
        begin, end = int(ends[shard] - stratum.shard_samples[shard]), int(ends[shard])
        for number in sorted(source.sample(range(begin, end), min(wanted, end - begin))):
            yield index, number


def _shown_sample(record: Record, recipe: Recipe) -> ShownSample:
    sample = draw_sample(record, recipe, epoch=0)
    augmentation = augmentation_for(
        record, sample.instruction, sample.answer, recipe.data.augmentation
    )
    variants = record.instructions if recipe.data.prompts == "instructions" else ()
    others = [text for text in variants if text != sample.instruction]
    return ShownSample(
        id=sample.id,
        form=record.form,
        pictures=tuple(_pictures(sample)),
        augmentation=_AUGMENTATION[augmentation] if record.images else "no image",
        instructions=(
            ShownText(sample.instruction, drawn=True),
            *(ShownText(text, drawn=False) for text in others),
        ),
        answers=_shown_answers(record, sample.answer),
    )


def _shown_answers(record: Record, drawn: str) -> tuple[ShownText, ...]:
    texts = [answer.text for answer in record.answers]
    at = texts.index(drawn)
    return tuple(
        ShownText(answer.text, number == at, answer.weight)
        for number, answer in enumerate(record.answers)
    )


def _pictures(sample: Sample) -> Iterator[npt.NDArray[np.uint8]]:
    """The images as levels again: uint8 [H, W, 3]."""
    mean_311 = torch.tensor(CLIP_MEAN).view(3, 1, 1)
    std_311 = torch.tensor(CLIP_STD).view(3, 1, 1)
    for pixels_CHW in sample.pixels_ICHW:
        levels_CHW = ((pixels_CHW * std_311 + mean_311) * 255).round().clamp(0, 255)
        yield levels_CHW.to(torch.uint8).permute(1, 2, 0).numpy()
