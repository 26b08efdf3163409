"""What all HTML pages share: one file, no script, no network; every text on them is hostile.

A page shows texts from annotations and from run directories that somebody else wrote. So each is
escaped, its direction is kept to itself, and the page's own policy forbids whatever might slip
through from loading or running anything. A page is light or dark as its reader's system is, fits a
phone, and can be read by keyboard and by a screen reader.
"""

import base64
import html
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ibtrain.files import write_whole

SHOWN_CHARACTERS = 4000
"""Of a text; what a longer one has more is left out, and said to be."""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def text(shown: object, most: int = SHOWN_CHARACTERS) -> str:
    """A text as HTML: escaped, without control characters, and of at most `most` characters."""
    content = str(shown)
    left_out = len(content) - most
    if left_out > 0:
        content = f"{content[:most]} ... ({left_out:,} more characters)"
    plain = "".join(
        character if character in "\n\t" or character.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for character in content
    )
    return html.escape(plain)


def page(title: str, head: str, main: str, *, heading: str | None = None, style: str = "") -> str:
    """A whole page.

    Args:
        title: of the window; plain text.
        head: HTML below the heading.
        main: HTML of the page's content.
        heading: plain text; default: the title.
        style: rules of this page alone.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n"
        '<a class=skip href="#content">Skip to the content</a>\n'
        f"<header><h1>{text(title if heading is None else heading)}</h1>{head}</header>\n"
        f'<main id="content">{main}</main>\n</body>\n</html>\n'
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """(what, value) pairs of plain text, side by side."""
    items = "".join(f"<div><dt>{text(k)}</dt><dd>{text(v)}</dd></div>" for k, v in pairs)
    return f"<dl class=facts>{items}</dl>"


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str,
    words: Sequence[int] = (),
) -> str:
    """A table of plain texts, the first column its rows' headings; it scrolls by itself where a
    screen is narrow.

    Args:
        columns: the headings.
        rows: as many texts each.
        caption: for a screen reader, which also names the region that scrolls.
        words: columns that hold prose, which may be broken into lines.
    """
    prose = dict.fromkeys(words, " class=prose")
    head = "".join(f"<th scope=col>{text(name)}</th>" for name in columns)
    body = "".join(
        f"<tr><th scope=row>{text(row[0])}</th>"
        + "".join(
            f"<td{prose.get(number, '')}><bdi>{text(cell, 400)}</bdi></td>"
            for number, cell in enumerate(row[1:], start=1)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class=scroll tabindex=0 role=region aria-label="{text(caption)}"><table>'
        f"<caption>{text(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def image(encoded: bytes, kind: str, alternative: str, width: int, height: int) -> str:
    """A picture within the page.

    Args:
        encoded: the file's bytes.
        kind: jpeg or png.
        alternative: what a screen reader says instead; plain text.
        width: pixels.
        height: pixels.
    """
    data = base64.b64encode(encoded).decode("ascii")
    return (
        f'<img alt="{text(alternative)}" width="{width}" height="{height}" '
        f'src="data:image/{kind};base64,{data}">'
    )


def check_writable(path: Path) -> None:
    """Refuses a file that no page can be written to, before any work is done for it.

    Raises:
        ValueError: its folder is not there, or it is one itself.
    """
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise ValueError(f"the page cannot be written to {path}: name a file in a folder there is")


def write_page(path: Path, content: str) -> None:
    """Writes a page atomically.

    Raises:
        ValueError: see `check_writable`.
        OSError: the file system cannot take it.
    """
    check_writable(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    write_whole(path, content.encode(errors="replace"), temporary=temporary)


STYLE = """
:root{--ground:#f6f6f4;--card:#fff;--ink:#1d1d1b;--soft:#63635e;--line:#dededa;--accent:#0b6e69;
--grey:#b4b4ad;--wash:#e3f1ef;--bad:#a3271b}
@media(prefers-color-scheme:dark){:root{--ground:#161717;--card:#1f2121;--ink:#ececea;
--soft:#a3a39d;--line:#363837;--accent:#4cc3ba;--grey:#5d605e;--wash:#183634;--bad:#ff9385}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);overflow-wrap:anywhere;
font:15px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
header,main{max-width:1240px;margin:0 auto;padding:0 20px}
header{padding-top:28px}
h1{font-size:26px;margin:0 0 12px;letter-spacing:-.01em}
h2{font-size:19px;margin:0 0 4px}
h3{font-size:11px;margin:14px 0 4px;text-transform:uppercase;letter-spacing:.06em;color:var(--soft)}
section{margin:36px 0}
.facts{display:flex;flex-wrap:wrap;gap:8px 28px;margin:0}
.facts dt{font-size:12px;color:var(--soft)}
.facts dd{margin:0;font-variant-numeric:tabular-nums}
.note,.legend{color:var(--soft);font-size:13px;margin:0}
.trouble{color:var(--bad)}
table{width:100%;border-collapse:collapse;margin-top:10px;font-variant-numeric:tabular-nums}
caption{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
td,th{padding:5px 8px;text-align:right;font-weight:400;white-space:nowrap}
thead th{font-size:12px;color:var(--soft);border-bottom:1px solid var(--line)}
th:first-child{text-align:left;padding-left:0}td:last-child,th:last-child{padding-right:0}
td.prose{text-align:left;white-space:normal;min-width:14em}
.scroll{overflow-x:auto;position:relative}
a{color:inherit;text-decoration-color:var(--grey);text-underline-offset:3px}
.skip{position:absolute;left:-999em}.skip:focus{left:12px;top:8px}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px;border-radius:3px}
img{display:block;width:100%;height:auto}
details{margin-top:4px}summary{cursor:pointer;font-size:13px;color:var(--soft)}
code,pre{font:12.5px/1.45 ui-monospace,Menlo,Consolas,monospace}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(330px,100%),1fr));gap:16px;
margin-top:14px;align-items:start}
@media(max-width:640px){.wide{display:none}td,th{padding:5px 5px}header,main{padding:0 14px}
header{padding-top:20px}}
@media print{.skip,details:not([open]){display:none}body{background:#fff}}
"""
