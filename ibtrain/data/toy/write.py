"""Writes the toy world to disk in the official file layouts of the 26 datasets it stands for.

    DIR/FOLDER/...         raw files of each dataset; places.py names the folders, and each module
                           of a family of datasets tells which files it writes
    DIR/text/              text alone, from which the toy's language model learns its language
    DIR/processor/         tokenizers
    DIR/toy.json           what was written, last

Everything is a function of the seed.
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ibtrain.data import catalog
from ibtrain.data.instructions import template_version
from ibtrain.data.toy import (
    captioning,
    dialog,
    language,
    llava,
    memes,
    question_answering,
    reading,
    reasoning,
    video,
    world,
)
from ibtrain.data.toy.coco import draw_coco
from ibtrain.data.toy.pictures import ToyWriter, write_json

TOY_VERSION = 2  # raise it when the same arguments give other files
_MARKER = "toy.json"


def write_toy(
    directory: Path,
    *,
    seed: int = 0,
    train_images: int = 3000,
    test_images: int = 300,
    num_query_tokens: int = 32,
    videos: bool = True,
) -> dict[str, int]:
    """Writes the toy world; an interrupted call leaves nothing at `directory`.

    Args:
        directory: absent or empty, or a toy written with the same arguments (nothing is done then).
        seed: gives everything that is random.
        train_images: images of COCO's train2014, which VQAv2, OKVQA, A-OKVQA and LLaVA share; the
            other sets to train on have a third or a sixth as many.
        test_images: images of each of GQA's two splits; others have a third as many.
        num_query_tokens: query tokens of the model, for the processor in `directory`/processor.
        videos: whether MSVD-QA, MSRVTT-QA and iVQA are among it; encoding them needs PyAV.

    Returns:
        The number of COCO's images, and of annotations by DATASET_SPLIT.

    Raises:
        FileExistsError: `directory` holds something else.
        ValueError: a count below 1.
    """
    if min(train_images, test_images) < 1:
        raise ValueError(f"train_images={train_images}, test_images={test_images}: at least 1 each")
    arguments = {
        "toy_version": TOY_VERSION,
        "templates": _template_versions(),
        "seed": seed,
        "train_images": train_images,
        "test_images": test_images,
        "num_query_tokens": num_query_tokens,
    }
    if not videos:
        arguments["videos"] = False  # worlds that were written before have no such argument
    counts = _already_written(directory, arguments)
    if counts is not None:
        return counts
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(
        tempfile.mkdtemp(prefix=f".{directory.name}.writing-", dir=directory.parent.resolve())
    )
    try:
        toy = ToyWriter(temporary, seed, train_images, test_images)
        _write_datasets(toy, videos)
        _write_processor(toy, num_query_tokens)
        write_json(temporary / _MARKER, {"arguments": arguments, "counts": toy.counts})
        temporary.chmod(0o777 & ~_umask())
        if directory.is_dir():
            directory.rmdir()  # empty, as _already_written saw; refuses if that has changed
        temporary.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return toy.counts


def _write_datasets(toy: ToyWriter, videos: bool) -> None:
    coco = draw_coco(toy)
    captioning.write(toy, coco)
    question_answering.write(toy, coco)
    reading.write(toy)
    llava.write(toy, coco)
    reasoning.write(toy)
    if videos:
        video.write(toy)
    dialog.write(toy)
    memes.write(toy)
    language.write(toy, coco)


def _write_processor(toy: ToyWriter, num_query_tokens: int) -> None:
    from ibtrain.data.toy.tokenizers import write_processor  # transformers takes seconds to import

    write_processor(
        toy.folder("toy_text") / "corpus.txt",
        toy.root / "processor",
        image_size=world.IMAGE_SIZE,
        num_query_tokens=num_query_tokens,
    )


def _template_versions() -> str:
    """A hash of every template and prompt that the tokenizers' text holds."""
    versions = [template_version(), *(template_version(entry) for entry in catalog.entries())]
    return hashlib.sha256("".join(versions).encode()).hexdigest()[:16]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _already_written(directory: Path, arguments: dict[str, Any]) -> dict[str, int] | None:
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return None
    marker = directory / _MARKER
    if not marker.is_file():
        raise FileExistsError(
            f"{directory} is not empty and holds no toy; name another directory or remove this one"
        )
    try:
        written = json.loads(marker.read_text(encoding="utf-8"))
        same, counts = written["arguments"] == arguments, written["counts"]
    except (ValueError, KeyError, TypeError) as error:
        raise FileExistsError(f"{marker} cannot be read; remove {directory}") from error
    if not same:
        raise FileExistsError(
            f"{directory} holds a toy written with {written['arguments']}, asked for {arguments}; "
            "name another directory or remove this one"
        )
    return dict(counts)
