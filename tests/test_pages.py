from pathlib import Path

import pytest

from ibtrain import pages
from tests.html_page import Page, assert_by_itself, rows_of

HOSTILE = '</title></style><script>alert(1)</script><img src=x onerror="alert(2)">&quot;\x00\u202e'


def test_a_text_is_escaped_without_control_characters_and_bounded():
    assert pages.text(HOSTILE) == (
        "&lt;/title&gt;&lt;/style&gt;&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=x "
        "onerror=&quot;alert(2)&quot;&gt;&amp;quot;\ufffd\ufffd"
    )
    assert pages.text("a'b\n\tc") == "a&#x27;b\n\tc"
    assert pages.text("x" * 4007) == "x" * 4000 + " ... (7 more characters)"
    assert pages.text("x" * 30, 10) == "x" * 10 + " ... (20 more characters)"
    assert pages.text(None) == "None" and pages.text("\ud800") == "\ufffd"


def test_hostile_texts_in_every_place_stay_texts():
    table = pages.table(["a", HOSTILE], [[HOSTILE, HOSTILE]], caption=HOSTILE, words=[1])
    image = pages.image(b"\xff\xd8", "jpeg", HOSTILE, 3, 4)
    head = pages.facts([(HOSTILE, HOSTILE)]) + image
    shown = Page(pages.page(HOSTILE, head, table, heading=HOSTILE))
    assert_by_itself(shown)
    said = HOSTILE.replace("\x00\u202e", "\ufffd\ufffd")
    assert shown.words.count(said) == 1 + 1 + 2 + 1 + 1 + 2
    [alternative] = [given["alt"] for tag, given in shown.tags if tag == "img"]
    assert alternative == said


def test_a_page_can_be_read_by_keyboard_and_screen_reader():
    text = pages.page("t", "", pages.table(["a", "b"], [["1", "2"]], caption="numbers"))
    shown = Page(text)
    tags = [tag for tag, _ in shown.tags]
    given = dict(shown.tags)
    assert given["html"]["lang"] == "en"
    assert given["a"] == {"class": "skip", "href": "#content"} and given["main"]["id"] == "content"
    assert tags.index("a") < tags.index("header") and tags.count("h1") == 1
    region = next(a for tag, a in shown.tags if a.get("role") == "region")
    assert region["tabindex"] == "0" and region["aria-label"] == "numbers"
    scopes = [a["scope"] for tag, a in shown.tags if tag == "th"]
    assert scopes == ["col", "col", "row"]
    assert rows_of(text, "numbers") == [["a", "b"], ["1", "2"]]
    assert "prefers-color-scheme:dark" in text and "focus-visible" in text


def test_a_page_is_written_atomically(tmp_path: Path):
    pages.write_page(tmp_path / "page.html", "one \ud800")
    assert (tmp_path / "page.html").read_bytes() == b"one ?"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    for wrong in (tmp_path, tmp_path / "none/page.html"):
        with pytest.raises(ValueError, match="cannot be written to"):
            pages.write_page(wrong, "two")
