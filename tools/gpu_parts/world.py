"""A small toy world to train on: images, annotations, shards, tokenizers."""

from pathlib import Path

from ibtrain.data.preparation.prepare import prepare
from ibtrain.data.toy import PLACES, write_toy

DATASETS = ("coco_caption", "vqav2", "ocr_vqa", "llava_conversation")


def make_world(directory: Path, images: int = 96) -> Path:
    """Writes the world, unless it is there; returns it. Videos are left out: the packages that
    encode them need not be there.
    """
    write_toy(directory / "raw", train_images=images, test_images=4, videos=False)
    for dataset in DATASETS:
        place = PLACES[dataset]
        prepare(
            dataset,
            directory / "raw" / place.folder,
            directory / "shards" / dataset,
            split=place.splits[0],
            progress=False,
        )
    return directory
