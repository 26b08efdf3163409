"""What a browser would make of a page, and what no page may have."""

import base64
import io
from html.parser import HTMLParser
from typing import Any

import numpy as np
from PIL import Image


class Page(HTMLParser):
    """What a browser would make of the page: tags with attributes, and the text between."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._inside: list[str] = []
        self.drawn: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "code":
            self._inside = ["code"]
        if tag == "li":
            self._inside = ["li", dict(attributes).get("class") or ""]

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._inside == ["code"]:
            self.ids.append(data)
            self._inside = []
        if self._inside == ["li", "drawn"] and data.strip() and data != "drawn":
            self.drawn.append(data)
            self._inside = []

    def images(self) -> list[np.ndarray[Any, Any]]:
        sources = [str(given["src"]) for tag, given in self.tags if tag == "img"]
        assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
        return [
            np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))))
            for source in sources
        ]


def assert_by_itself(page: Page) -> None:
    """The page runs nothing and loads nothing, and its own policy says so."""
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "b"}
    assert not any(name.startswith("on") for _, given in page.tags for name in given)
    links = [str(given[key]) for _, given in page.tags for key in ("href", "src") if key in given]
    assert links and all(link.startswith(("#", "data:image/jpeg")) for link in links)
    policy = next(given["content"] for tag, given in page.tags if "http-equiv" in given)
    assert policy is not None and policy.startswith("default-src 'none'")


def rows_of(page: str, caption: str) -> list[list[str]]:
    """The cells of the table with that caption, its headings first."""

    class Table(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.rows: list[list[str]] = []
            self.inside = self.found = self.captioned = False
            self.feed(page)

        def handle_starttag(self, tag: str, attributes: Any) -> None:
            self.captioned = tag == "caption"
            if tag == "tr" and self.found:
                self.rows.append([])
            self.inside = self.inside or tag in ("td", "th")
            if tag in ("td", "th") and self.found:
                self.rows[-1].append("")

        def handle_endtag(self, tag: str) -> None:
            if tag == "table":
                self.found = False
            if tag in ("td", "th"):
                self.inside = False

        def handle_data(self, data: str) -> None:
            if self.captioned:
                self.found, self.captioned = data == caption, False
            elif self.found and self.inside:
                self.rows[-1][-1] += data

    return Table().rows
