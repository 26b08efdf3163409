from pathlib import Path

from ibtrain.report.lines import Unread, objects, whole_number


def read(path: Path) -> tuple[list[dict], Unread]:
    unread = Unread()
    return list(objects(path, unread)), unread


def test_a_half_written_line_ends_the_file_and_damaged_ones_are_counted(tmp_path: Path):
    file = tmp_path / "lines.jsonl"
    deep = b'{"b": ' + b"[" * 100_000
    file.write_bytes(b'{"a": 1}\n\n[1]\nnot json\n\xff\xfe\n' + deep + b'\n{"c": 2}\n{"d": ')
    found, unread = read(file)
    assert found == [{"a": 1}, {"c": 2}]
    assert (unread.damaged, unread.half_written) == (4, True)
    file.write_bytes(b'{"a": 1}\n{"b": 2}')  # whole, though no line end has followed yet
    found, unread = read(file)
    assert found == [{"a": 1}, {"b": 2}] and not unread.half_written


def test_a_line_without_end_is_passed_over(tmp_path: Path):
    file = tmp_path / "lines.jsonl"
    file.write_bytes(b'{"a": "' + b"x" * (3 * 2**20) + b'"}\n{"b": 1}\n')
    found, unread = read(file)
    assert found == [{"b": 1}] and unread.damaged == 1


def test_no_file_has_no_lines(tmp_path: Path):
    assert read(tmp_path / "none") == ([], Unread())


def test_whole_numbers():
    values = [0, 7, -1, 2**53, 1.0, True, "3", None]
    assert [whole_number(value) for value in values] == [0, 7, *[None] * 6]
