"""HTML pages that need nothing beside themselves: no script, nothing fetched."""

import base64
from html import escape

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { --ink: #1f2328; --faint: #6b7280; --paper: #f6f7f9; --card: #ffffff; --edge: #d9dce1;
  --ours: #2563eb; --theirs: #9ca3af; --right: #15803d; --wrong: #b91c1c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --faint: #9ba1a9; --paper: #14161a;
  --card: #1d2026; --edge: #343941; --ours: #7aa2f7; --theirs: #6b7280; --right: #4ade80;
  --wrong: #f87171; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .5rem; } h2 { font-size: 1.2rem; margin: 0 0 .5rem; }
section { background: var(--card); border: 1px solid var(--edge); border-radius: 10px;
  padding: 1rem 1.25rem; margin: 1rem 0; overflow-x: auto; }
table { border-collapse: collapse; } th, td { padding: .2rem .9rem .2rem 0; text-align: left;
  vertical-align: top; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
.faint { color: var(--faint); } a { color: var(--ours); }
"""


def text(value: object) -> str:
    """A value as text of a page."""
    return escape(str(value))


def picture(data: bytes, kind: str, description: str) -> str:
    """An image within the page; `kind` is its type, such as image/jpeg."""
    encoded = base64.b64encode(data).decode()
    return f'<img src="data:{kind};base64,{encoded}" alt="{escape(description)}" loading="lazy">'


def page(title: str, body: str, style: str = "") -> str:
    """A whole page.

    Args:
        title: plain text.
        body: HTML.
        style: more of it.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n"
        f"{body}\n</body>\n</html>\n"
    )
