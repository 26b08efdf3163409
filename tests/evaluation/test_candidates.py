import json

import pytest

from ibtrain.evaluation.candidates import read_candidates


def test_lists_and_files(tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("\ufeffred\n\n  a blue, or green \nred\n", encoding="utf-8")
    array = tmp_path / "array.json"
    array.write_text(json.dumps(["x", "y,z"]))
    plain = tmp_path / "plain"
    plain.write_text("one\n")
    assert read_candidates(["red, blue,,"]) == (["red", "blue"], ())
    assert read_candidates([str(lines)]) == (["red", "a blue, or green"], ("red",))
    assert read_candidates([str(array), str(plain), "x"]) == (["x", "y,z", "one"], ("x",))
    assert read_candidates(["a" * 5000]) == (["a" * 5000], ())
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({"yes": ["yes", "true"], "no": ["no"]}))
    assert read_candidates([str(labels)]) == ({"yes": ["yes", "true"], "no": ["no"]}, ())
    with pytest.raises(ValueError, match="holds labels; give it alone"):
        read_candidates([str(labels), "red"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\n \n", "the list of candidates is empty"),
        ("a.txt", b"\xff", "not UTF-8"),
        ("a.json", b"[1]", "expected a list of texts"),
        ("a.json", b'{"yes": "yes"}', "expected a list of texts"),
        ("a.json", b"{", "not readable as JSON"),
        ("a.json", b"[" * 100_000, "not readable as JSON"),
    ],
)
def test_files_that_are_none(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_candidates([str(tmp_path / name)])


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"words.txt cannot be read: No such file"):
        read_candidates([str(tmp_path / "words.txt")])
    with pytest.raises(ValueError, match="the list of candidates is empty"):
        read_candidates([","])
