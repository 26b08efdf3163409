"""Shards of ours and of Streaming's own writer, each read by both readers."""

import json
import tempfile
from pathlib import Path
from typing import Any

import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ibtrain.data.records import Answer, Record
from ibtrain.data.shards.records import columns_to_record, read_records, record_to_columns
from ibtrain.data.shards.writer import ShardWriter, encode_sample
from tests.data.shard_directories import jpeg, write_shards

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
# MDSWriter begins with an empty shard when the first sample alone is over the limit, ours does not
SMALL = Record("vqav2", "image_question_answering", "first", (), ("?",), ())
RECORDS = st.lists(
    st.builds(
        Record,
        dataset=st.just("vqav2"),
        task=st.just("image_question_answering"),
        id=st.integers(0, 10**9).map(str),
        images=st.lists(st.integers(0, 255).map(jpeg), max_size=3).map(tuple),
        instructions=st.lists(TEXTS, min_size=1, max_size=3).map(tuple),
        answers=st.lists(st.builds(Answer, TEXTS, st.floats(0.5, 1e6)), max_size=3).map(tuple),
        form=TEXTS,
        plain=TEXTS,
        details=st.dictionaries(TEXTS, VALUES, max_size=3),
    ),
    min_size=1,
    max_size=8,
).map(lambda drawn: [SMALL, *drawn])


def write_ours(directory: Path, records: list[Record], shard_bytes: int) -> None:
    directory.mkdir()
    writer = ShardWriter(directory, shard_bytes)
    for record in records:
        writer.write(encode_sample(record_to_columns(record)))
    writer.finish()
    (directory / "index.json").write_text(json.dumps({"version": 2, "shards": writer.entries}))


def read_by_streaming(directory: Path) -> list[dict[str, Any]]:
    """Every sample by MDSReader, which reads raw shards."""
    from streaming.base.format.mds.reader import MDSReader

    columns: list[dict[str, Any]] = []
    for entry in json.loads((directory / "index.json").read_text())["shards"]:
        stored = directory / entry["zip_data"]["basename"]
        raw = zstandard.decompress(stored.read_bytes())
        (directory / entry["raw_data"]["basename"]).write_bytes(raw)
        reader = MDSReader.from_json(str(directory), None, entry)
        columns += [reader.get_item(number) for number in range(reader.samples)]
    return columns


def raw_shards(directory: Path) -> list[bytes]:
    stored = sorted(directory.glob("*.zstd"))
    return [zstandard.decompress(path.read_bytes()) for path in stored]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(records=RECORDS, shard_bytes=st.sampled_from([2000, 1 << 20]))
def test_both_writers_and_both_readers_agree(records, shard_bytes):
    with tempfile.TemporaryDirectory() as name:
        ours, theirs = Path(name) / "ours", Path(name) / "theirs"
        write_ours(ours, records, shard_bytes)
        write_shards(theirs, records, shard_bytes=shard_bytes)
        assert raw_shards(ours) == raw_shards(theirs)
        for directory in (ours, theirs):
            assert list(read_records(directory)) == records
            assert [columns_to_record(one) for one in read_by_streaming(directory)] == records
