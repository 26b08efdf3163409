"""A shard directory that has lost its index: nothing is called removable, and it is made again."""

import json
from pathlib import Path

import pytest
import zstandard
from streaming import StreamingDataset

from ibtrain.cli import main
from ibtrain.data.shards.card import CARD
from ibtrain.data.shards.index import INDEX, read_index
from ibtrain.data.shards.rebuild import rebuild_index
from ibtrain.data.shards.records import read_records
from ibtrain.data.shards.verify import verify
from tests.data.shard_directories import record, write_card, write_shards

pytestmark = pytest.mark.usefixtures("logger_as_it_was")


@pytest.fixture(params=["zstd:3", None])
def lost(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, bytes]:
    """A directory of several shards without its index, and that index."""
    directory = tmp_path / "shards"
    records = [record(number) for number in range(20)]
    write_shards(directory, records, compression=request.param, shard_bytes=5_000)
    write_card(directory)
    index = (directory / INDEX).read_bytes()
    (directory / INDEX).unlink()
    return directory, index


def test_it_is_what_it_was(lost: tuple[Path, bytes], capsys: pytest.CaptureFixture[str]):
    directory, index = lost
    shards = len(list(directory.glob("*.mds*")))
    assert shards > 1
    assert main(["data", "verify", str(directory)]) == 1
    printed = capsys.readouterr().out
    assert "removed" not in printed and "left over" not in printed
    assert f"`ibtrain data verify {directory} --rebuild-index`" in printed
    assert main(["data", "verify", str(directory), "--rebuild-index"]) == 0
    assert capsys.readouterr().out == (
        f"{INDEX} is made again of {shards} shards\n{directory}: 20 good records, 0 problems\n"
    )
    assert json.loads((directory / INDEX).read_text()) == json.loads(index)
    assert list(read_records(directory)) == [record(number) for number in range(20)]


def test_streaming_reads_it(lost: tuple[Path, bytes]):
    directory, _ = lost
    rebuild_index(directory)
    dataset = StreamingDataset(local=str(directory), shuffle=False, batch_size=1)
    assert [sample["id"] for sample in dataset] == [str(number) for number in range(20)]


def test_prepare_names_the_same_remedy(lost: tuple[Path, bytes], tmp_path: Path):
    from ibtrain.data.preparation.prepare import prepare
    from ibtrain.data.toy import write_toy

    directory, _ = lost
    raw = tmp_path / "raw"
    write_toy(raw, train_images=4, test_images=2, videos=False)
    before = sorted(path.name for path in directory.iterdir())
    with pytest.raises(ValueError, match=f"verify {directory} --rebuild-index"):
        prepare("vqav2", raw / "vqav2", directory, progress=False)
    assert sorted(path.name for path in directory.iterdir()) == before


@pytest.mark.parametrize("content", ["", "{}", '{"version": 2, "shards": []}', "[1", "null"])
def test_an_index_that_cannot_be_read_is_replaced(lost: tuple[Path, bytes], content: str):
    directory, index = lost
    (directory / INDEX).write_text(content)
    report = verify(directory, progress=False)
    assert report.leftovers == () and report.bad[0].shard == INDEX
    rebuild_index(directory)
    assert json.loads((directory / INDEX).read_text()) == json.loads(index)


def test_an_index_that_can_be_read_is_kept(lost: tuple[Path, bytes]):
    directory, index = lost
    (directory / INDEX).write_bytes(index)
    with pytest.raises(ValueError, match=r"index\.json is there and can be read; nothing is rebu"):
        rebuild_index(directory)
    assert (directory / INDEX).read_bytes() == index


def test_a_shard_that_a_shortened_index_does_not_name_is_not_called_removable(
    lost: tuple[Path, bytes],
):
    directory, index = lost
    content = json.loads(index)
    content["shards"].pop()
    (directory / INDEX).write_text(json.dumps(content))
    (directory / "notes.txt").touch()
    assert verify(directory, progress=False).leftovers == ("notes.txt",)
    content["shards"][0]["raw_data"]["bytes"] = "many"  # one entry that is damaged
    (directory / INDEX).write_text(json.dumps(content))
    assert verify(directory, progress=False).leftovers == ()


def test_what_is_missing_or_foreign_is_refused(lost: tuple[Path, bytes], tmp_path: Path):
    directory, _ = lost
    names = sorted(path.name for path in directory.glob("*.mds*"))
    last, first = directory / names[-1], directory / names[0]
    kept = last.read_bytes()
    last.unlink()
    with pytest.raises(ValueError, match=r"are not those of card.json: it speaks of 20 records"):
        rebuild_index(directory)
    last.write_bytes(kept)
    kept = first.read_bytes()
    first.unlink()
    with pytest.raises(ValueError, match=f"{names[1]} stands where shard 0 is expected"):
        rebuild_index(directory)
    for content in (b"", b"\0" * 100, kept[:50], b"x" * 5000):
        first.write_bytes(content)
        with pytest.raises(ValueError, match=names[0].replace(".", r"\.")):
            rebuild_index(directory)
    first.unlink()
    first.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_bytes(kept)
    with pytest.raises(ValueError, match="a link that leaves the directory"):
        rebuild_index(directory)
    assert not (directory / INDEX).exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="holds no shard that an index could be made of"):
        rebuild_index(empty)


def test_a_bomb_is_not_unpacked(tmp_path: Path):
    bomb = zstandard.compress(bytes(1 << 28))
    (tmp_path / "shard.00000.mds.zstd").write_bytes(bomb)
    with pytest.raises(ValueError, match=f"would unpack to {1 << 28} bytes"):
        rebuild_index(tmp_path)


def test_without_a_card_and_beside_an_unpacked_copy(lost: tuple[Path, bytes]):
    directory, index = lost
    (directory / CARD).unlink()
    for path in directory.glob("*.zstd"):
        path.with_suffix("").write_bytes(b"unpacked by a reader")
    assert rebuild_index(directory) == read_index(directory)
    assert json.loads((directory / INDEX).read_text()) == json.loads(index)
