"""The preview as one HTML page: no file beside it, no network, no script; texts are hostile.

Every text comes from somebody's annotations, so it is escaped, its direction is kept to itself, and
the page's own policy forbids whatever might slip through from loading or running anything.
"""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

SHOWN_CHARACTERS = 4000
_OPEN_VARIANTS = 3
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class ShownText:
    """A text of which one is drawn; `weight` is an answer's, None an instruction's."""

    text: str
    drawn: bool
    weight: float | None = None


@dataclass(frozen=True)
class ShownSample:
    """A sample as it is drawn: pictures uint8 [size, size, 3], one, the frames of a video or none.

    `augmentation` says in words what was done to them.
    """

    id: str
    form: str
    pictures: tuple[npt.NDArray[np.uint8], ...]
    augmentation: str
    instructions: tuple[ShownText, ...]
    answers: tuple[ShownText, ...]


@dataclass(frozen=True)
class ShownDataset:
    """A dataset: its numbers in the mixture and some of its samples, or why none can be shown.

    `forms` are (form, samples per epoch) where the recipe weighs the forms of its records.
    """

    name: str
    task: str
    size: int
    share: float
    samples_per_epoch: float
    samples: tuple[ShownSample, ...]
    forms: tuple[tuple[str, int], ...] = ()
    trouble: str = ""

    @property
    def epochs(self) -> float:
        """How often its samples are seen in an epoch of the mixture, on average."""
        return self.samples_per_epoch / self.size


def page(title: str, facts: Sequence[tuple[str, str]], datasets: Sequence[ShownDataset]) -> str:
    """The whole page.

    Args:
        title: the recipe.
        facts: (what, value) pairs for the head of the page.
        datasets: in the order of the recipe.
    """
    shown_facts = "".join(f"<div><dt>{_text(k)}</dt><dd>{_text(v)}</dd></div>" for k, v in facts)
    sections = "".join(_section(number, dataset) for number, dataset in enumerate(datasets))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>Mixture of {_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{_text(title)}</h1><dl class=facts>{shown_facts}</dl></header>\n"
        f"<main>{_chart(datasets)}{sections}</main>\n</body>\n</html>\n"
    )


def _chart(datasets: Sequence[ShownDataset]) -> str:
    """A row of numbers per dataset beside its two bars: share in the mixture, share by size."""
    total = sum(dataset.size for dataset in datasets)
    longest = max(max(d.share, d.size / total) for d in datasets)
    rows = []
    for number, dataset in enumerate(datasets):
        by_size = dataset.size / total
        bars = "".join(
            f'<rect class="{kind}" x="0" y="{top}" width="{100 * share / longest:.3f}" '
            f'height="{height}" rx="0.4"/>'
            for kind, share, top, height in (
                ("share", dataset.share, 1, 11),
                ("size", by_size, 14, 5),
            )
        )
        label = f"{dataset.share:.2%} of the mixture, {by_size:.2%} of all samples"
        rows.append(
            f'<tr><th scope=row><a href="#d{number}">{_text(dataset.name)}</a></th>'
            f'<td class=bar><svg viewBox="0 0 100 20" preserveAspectRatio="none" role="img" '
            f'aria-label="{label}"><title>{label}</title>{bars}</svg></td>'
            f"<td>{dataset.share:.2%}</td><td class=wide>{dataset.size:,}</td>"
            f"<td class=wide>{dataset.samples_per_epoch:,.0f}</td>"
            f"<td>{_epochs(dataset.epochs)}</td></tr>"
        )
    return (
        "<section class=chart><h2>Share of each dataset</h2>"
        "<p class=legend><span class=key-share></span> of the mixture "
        "<span class=key-size></span> by size alone</p>"
        "<table><thead><tr><th scope=col>dataset</th><th class=bar></th><th scope=col>share</th>"
        "<th scope=col class=wide>samples</th><th scope=col class=wide>drawn per epoch</th>"
        "<th scope=col>seen per epoch</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></section>"
    )


def _epochs(epochs: float) -> str:
    return f"{epochs:.1f} &times;" if epochs >= 10 else f"{epochs:.2f} &times;"


def _section(number: int, dataset: ShownDataset) -> str:
    cards = "".join(_card(sample) for sample in dataset.samples)
    forms = "".join(
        f" &middot; {_text(form.replace('_', ' '))} {draws:,}" for form, draws in dataset.forms
    )
    trouble = f"<p class=trouble>{_text(dataset.trouble)}</p>" if dataset.trouble else ""
    return (
        f'<section id="d{number}"><h2>{_text(dataset.name)}</h2>'
        f"<p class=note>{_text(dataset.task.replace('_', ' '))} &middot; {dataset.share:.2%} of "
        f"the mixture &middot; {dataset.size:,} samples, each seen {dataset.epochs:.2f} times per "
        f"epoch{forms}</p>{trouble}<div class=cards>{cards}</div></section>\n"
    )


def _card(sample: ShownSample) -> str:
    return (
        f"<article>{_pictures(sample.pictures)}<div class=words>"
        f"<h3>Instruction</h3>{_texts(sample.instructions, 'instruction')}"
        f"<h3>Answer</h3>{_texts(sample.answers, 'answer')}"
        f"<p class=note><code>{_text(sample.id)}</code>"
        f"{' &middot; ' + _text(sample.form.replace('_', ' ')) if sample.form else ''}"
        f" &middot; {_text(sample.augmentation)}</p></div></article>"
    )


def _pictures(pictures: Sequence[npt.NDArray[np.uint8]]) -> str:
    if not pictures:
        return "<div class=textalone>text alone, no image</div>"
    kind = "frames" if len(pictures) > 1 else "picture"
    images = "".join(
        f'<img alt="{f"frame {number}" if len(pictures) > 1 else "the image"} as the model sees it"'
        f' width="{picture.shape[1]}" height="{picture.shape[0]}" src="{_data_uri(picture)}">'
        for number, picture in enumerate(pictures, start=1)
    )
    return f"<div class={kind}>{images}</div>"


def _data_uri(picture: npt.NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _texts(texts: Sequence[ShownText], kind: str) -> str:
    """The drawn text first, then some others, the rest folded away."""
    if not texts:
        return "<p class=note>none is public</p>"
    ordered = sorted(texts, key=lambda text: not text.drawn)
    weights = [text.weight or 0.0 for text in texts]
    heaviest = max(weights) if len(weights) > 1 else 0.0  # a single one needs no weight
    open_ones = 1 + _OPEN_VARIANTS if len(ordered) <= 2 + _OPEN_VARIANTS else _OPEN_VARIANTS
    shown = _items(ordered[:open_ones], heaviest)
    rest = ordered[open_ones:]
    if not rest:
        return f"<ul>{shown}</ul>"
    return (
        f"<ul>{shown}</ul><details><summary>{len(rest)} other {kind}s</summary>"
        f"<ul>{_items(rest, heaviest)}</ul></details>"
    )


def _items(texts: Iterable[ShownText], heaviest: float) -> str:
    items = []
    for text in texts:
        weight = ""
        if text.weight is not None and heaviest:
            weight = (
                f'<span class=weight title="weight {text.weight:g}">{text.weight:g}'
                f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
                f'<rect width="{100 * text.weight / heaviest:.1f}" height="10"/></svg></span>'
            )
        mark = "<span class=mark>drawn</span> " if text.drawn else ""
        kind = " class=drawn" if text.drawn else ""
        items.append(f"<li{kind}><p dir=auto>{mark}<bdi>{_text(text.text)}</bdi></p>{weight}</li>")
    return "".join(items)


def _text(text: str) -> str:
    """A text as HTML: escaped, without control characters, and of bounded length."""
    left_out = len(text) - SHOWN_CHARACTERS
    if left_out > 0:
        text = f"{text[:SHOWN_CHARACTERS]} ... ({left_out:,} more characters)"
    plain = "".join(
        character if character in "\n\t" or character.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )
    return html.escape(plain)


_STYLE = """
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
.legend span{display:inline-block;width:18px;height:9px;border-radius:2px;margin-right:4px}
.legend span+span{margin-left:14px}
.key-share{background:var(--accent)}.key-size{background:var(--grey);margin-left:14px}
table{width:100%;border-collapse:collapse;margin-top:10px;font-variant-numeric:tabular-nums}
td,th{padding:5px 8px;text-align:right;font-weight:400;white-space:nowrap}
thead th{font-size:12px;color:var(--soft);border-bottom:1px solid var(--line)}
th:first-child{text-align:left;padding-left:0}td:last-child,th:last-child{padding-right:0}
td.bar{width:46%;min-width:90px}
td.bar svg{display:block;width:100%;height:20px}
rect.share{fill:var(--accent)}rect.size{fill:var(--grey)}
a{color:inherit;text-decoration-color:var(--grey);text-underline-offset:3px}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(330px,100%),1fr));gap:16px;
margin-top:14px;align-items:start}
article{background:var(--card);border:1px solid var(--line);border-radius:10px;overflow:hidden}
.picture,.frames,.textalone{background:var(--line)}
img{display:block;width:100%;height:auto}
.frames{display:grid;grid-template-columns:repeat(4,1fr);gap:2px}
.picture img{max-width:224px;margin:0 auto}
.textalone{padding:26px;text-align:center;color:var(--soft);font-size:13px}
.words{padding:0 16px 14px}
.words>.note{margin-top:12px;border-top:1px solid var(--line);padding-top:10px}
ul{list-style:none;margin:0;padding:0}
li{display:flex;gap:10px;justify-content:space-between;padding:4px 8px;margin:0 -8px;
border-radius:6px}
li p{margin:0;white-space:pre-wrap;max-height:15em;overflow:auto;min-width:0}
li.drawn{background:var(--wash)}
.mark{font-size:11px;color:var(--accent);border:1px solid;border-radius:4px;padding:0 4px}
.weight{flex:none;width:56px;text-align:right;font-size:13px;color:var(--soft);
font-variant-numeric:tabular-nums}
.weight svg{display:block;width:100%;height:3px}.weight rect{fill:var(--grey)}
details{margin-top:4px}summary{cursor:pointer;font-size:13px;color:var(--soft)}
code{font:12.5px ui-monospace,Menlo,Consolas,monospace}
@media(max-width:640px){.wide{display:none}td,th{padding:5px 5px}header,main{padding:0 14px}
header{padding-top:20px}}
"""
