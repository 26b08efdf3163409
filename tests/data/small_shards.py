"""Shards written for a test: as many records and shards as it needs, no raw files."""

import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from ibtrain.data.records import Answer, Record
from ibtrain.data.shards.records import COLUMNS, COMPRESSION, HASHES, record_to_columns


def picture(color: tuple[int, int, int] = (200, 30, 40), size: tuple[int, int] = (12, 10)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def record(dataset: str, number: int, form: str = "visual_question_answering") -> Record:
    """Record `number`: its id is the number, its answer tells dataset and number."""
    return Record(
        dataset=dataset,
        task="image_question_answering",
        id=str(number),
        images=(picture((number % 256, 0, 0)),),
        instructions=(f"What is number {number}?", f"Number {number}, short answer:"),
        answers=(Answer(f"{dataset} {number}"),),
        form=form,
        plain=f"What is number {number}?",
    )


def write_shards(
    directory: Path,
    dataset: str,
    count: int,
    *,
    per_shard: int = 5,
    compressed: bool = True,
    make: Callable[[str, int], Record] = record,
) -> Path:
    """Writes `count` records, `per_shard` to a shard."""
    from streaming import MDSWriter

    with MDSWriter(
        out=str(directory),
        columns=COLUMNS,
        compression=COMPRESSION if compressed else None,
        hashes=list(HASHES),
        size_limit=None,
    ) as writer:
        for number in range(count):
            if number and number % per_shard == 0:
                writer.flush_shard()
                writer._reset_cache()
            writer.write(record_to_columns(make(dataset, number)))
    return directory
