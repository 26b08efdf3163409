"""Files written whole, read within bounds, locked."""

import pytest

from ibtrain.files import BusyError, FileError, locked, read_json, sha256_of, sync_tree, write_whole


def test_write_whole(tmp_path):
    file = tmp_path / "file"
    write_whole(file, "öne\n")
    write_whole(file, "two\n")
    assert file.read_text(encoding="utf-8") == "two\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is missing; do this"),
        (b"{", "is not JSON .*; do this"),
        (b"\xff", "is not JSON .*; do this"),
        (b"[1]", "is not a JSON object; do this"),
    ],
)
def test_read_json(tmp_path, content, said):
    if content is not None:
        (tmp_path / "state.json").write_bytes(content)
    with pytest.raises(FileError, match=said):
        read_json(tmp_path / "state.json", "do this")


def test_read_json_of_bounded_size(tmp_path):
    with (tmp_path / "state.json").open("wb") as file:
        file.truncate(2**30)  # takes no space
    with pytest.raises(FileError, match="has 1073741824 bytes, too many"):
        read_json(tmp_path / "state.json", "")


def test_a_text_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "recipe.yaml").write_text("before")
    (tmp_path / ".recipe.yaml.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as error:
        write_whole(tmp_path / "recipe.yaml", "after")
    assert error.value.filename == str(tmp_path / "recipe.yaml")
    assert (tmp_path / "recipe.yaml").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_bytes_go_through_a_file_of_ones_own(tmp_path):
    (tmp_path / "parts").mkdir()
    seen = tmp_path / "parts" / "mine"
    write_whole(tmp_path / "file", b"\xff", temporary=seen)
    assert (tmp_path / "file").read_bytes() == b"\xff"
    assert list((tmp_path / "parts").iterdir()) == []
    sync_tree(tmp_path)
    digest = "a8100ae6aa1940d0b663bb31cd466142ebbdbd5187131b92d93818987832eb89"
    assert sha256_of(tmp_path / "file") == digest


def test_a_lock_is_held_by_one_or_shared_by_several(tmp_path):
    path = tmp_path / "lock"
    with (
        locked(path, shared=True),
        locked(path, shared=True, wait_seconds=0),
        pytest.raises(BusyError, match=f"{path} is held by another process"),
        locked(path, wait_seconds=0.1),
    ):
        pass
    with locked(path, wait_seconds=0):
        assert path.exists()
