"""The page of an evaluation: charts, intervals, the paper's figures, answers with their images."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from ibtrain.data.images import to_rgb
from ibtrain.evaluation.scoring import Result, shown, type_of
from ibtrain.pages import image as shown_image
from ibtrain.pages import page, text

_SIDE = 160
_ROW = 24
_LABEL, _WIDTH, _FIGURES = 250, 420, 150
_STYLE = """
:root { --faint: var(--soft); --edge: var(--line); --ours: var(--accent); --theirs: var(--grey);
  --right: #15803d; --wrong: var(--bad); }
@media (prefers-color-scheme: dark) { :root { --right: #4ade80; } }
section { background: var(--card); border: 1px solid var(--edge); border-radius: 10px;
  padding: 1rem 1.25rem; margin: 1rem 0; overflow-x: auto; }
table { width: auto; } td, th { text-align: left; padding: .2rem .9rem .2rem 0;
  vertical-align: top; white-space: normal; } td.number { text-align: right; }
.faint { color: var(--faint); }
svg { max-width: 100%; height: auto; }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif; }
.ours { fill: var(--ours); } .theirs { fill: var(--theirs); }
.interval { stroke: var(--ink); stroke-width: 1.5; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin-top: .8rem; }
.card { width: 12rem; border: 1px solid var(--edge); border-radius: 8px; padding: .6rem;
  font-size: .85rem; } .card img { width: 100%; border-radius: 4px; }
.right b { color: var(--right); } .wrong b { color: var(--wrong); }
.choose input { position: absolute; opacity: 0; }
.choose label { border: 1px solid var(--edge); border-radius: 99px; padding: .1rem .8rem;
  margin-right: .4rem; cursor: pointer; }
.choose input:checked + label { background: var(--ours); color: var(--card); }
.choose input:focus-visible + label { outline: 2px solid var(--ink); }
.choose:has(.only-right:checked) .card:not(.right) { display: none; }
.choose:has(.only-wrong:checked) .card:not(.wrong) { display: none; }
"""


def results_page(document: Mapping[str, Any], results: Sequence[Result]) -> str:
    """The page of results.json's document and the results that it was made of."""
    by_name = {result.name: result for result in results}
    about = document.get("model", {})
    head = f"<p class=faint>{text(about.get('model', ''))}"
    if about.get("step") is not None:
        head += f", step {text(about['step'])}"
    sections = [_section(name, row, by_name[name]) for name, row in document["benchmarks"].items()]
    return page("Evaluation", f"{head}</p>", _overview(document) + "".join(sections), style=_STYLE)


def _overview(document: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope=row><a href="#{text(name)}">{text(name)}</a></th>'
        f"<td>{text(row['metric'])}</td><td class=number>{_figure(row['value'])}</td>"
        f"<td class=number>{_interval(row)}</td><td class=number>{row['n']:,}</td>"
        f"<td>{'partial' if row['partial'] else ''}</td></tr>"
        for name, row in document["benchmarks"].items()
    )
    return (
        "<section><h2>All benchmarks</h2><table><thead><tr><th>benchmark</th><th>metric</th>"
        "<th>value</th><th>95 % interval</th><th>n</th><th></th></tr></thead>"
        f"<tbody>{rows}</tbody></table></section>"
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _interval(row: Mapping[str, Any]) -> str:
    if row["interval"] is None:
        return "-"
    return " to ".join(f"{100 * end:.2f}" for end in row["interval"])


def _section(name: str, row: Mapping[str, Any], result: Result) -> str:
    notes = "".join(f"<li>{text(note)}</li>" for note in (*row["notes"], *result.protocol.notes))
    also = ", ".join(f"{text(key)} {value:.4g}" for key, value in row["also"].items())
    return (
        f'<section id="{text(name)}"><h2>{text(name)}</h2>'
        f"<p>{text(row['metric'])}{': ' + also if also else ''}</p>{_chart(row)}{_types(row)}"
        f"{_protocol(row['protocol'])}{f'<ul>{notes}</ul>' if notes else ''}"
        f"{_cards(name, result)}</section>"
    )


def _chart(row: Mapping[str, Any]) -> str:
    """Ours with its interval, the best constant, the paper's rows, what others got."""
    bars: list[tuple[str, float, bool]] = []
    if row["value"] is not None:
        bars.append(("this model", 100 * row["value"], True))
    if row["best_constant"] is not None:
        bars.append(("best constant answer", 100 * row["best_constant"], False))
    bars += [(who, value, False) for who, value in row["table_1"].items()]
    bars += [(f"{who} (fine-tuned)", value, False) for who, value in row["table_3"].items()]
    bars += [(f"{one['who']} ({one['source']})", one["value"], False) for one in row["outside"]]
    if not bars:
        return "<p>No answers are public: predictions are written, and no score.</p>"
    ends = [100 * row["interval"][1]] if row["interval"] else []
    scale = _WIDTH / max(1e-9, *ends, *(value for _, value, _ in bars))
    shapes = []
    for number, (label, value, ours) in enumerate(bars):
        top = number * _ROW
        short = label if len(label) <= 34 else f"{label[:33]}\u2026"
        shapes.append(
            f"<text x={_LABEL - 8} y={top + 16} text-anchor=end>{text(short)}</text>"
            f"<rect class={'ours' if ours else 'theirs'} x={_LABEL} y={top + 4} "
            f'width="{value * scale:.1f}" height=16 rx=3><title>{text(label)}: {value:.2f}</title>'
            f'</rect><text x="{_LABEL + _WIDTH + 8}" y={top + 16}>{value:.1f}</text>'
        )
        if ours and row["interval"]:
            low, high = (_LABEL + 100 * end * scale for end in row["interval"])
            shapes.append(
                f'<line class=interval x1="{low:.1f}" x2="{high:.1f}" y1={top + 12} '
                f"y2={top + 12} />"
            )
    width, height = _LABEL + _WIDTH + _FIGURES, len(bars) * _ROW + 4
    return f'<svg viewBox="0 0 {width} {height}" width={width} role=img>{"".join(shapes)}</svg>'


def _types(row: Mapping[str, Any]) -> str:
    tables = []
    for key, own in row["by"].items():
        if len(own) < 2:
            continue
        rows = "".join(
            f"<tr><th scope=row>{text(kind)}</th><td class=number>{_figure(one['value'])}</td>"
            f"<td class=number>{_interval(one)}</td><td class=number>{one['n']:,}</td></tr>"
            for kind, one in own.items()
        )
        tables.append(
            f"<details><summary>by {text(key.replace('_', ' '))}</summary><table>{rows}</table>"
            "</details>"
        )
    return "".join(tables)


def _protocol(protocol: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th scope=row>{text(key)}</th><td>{text(one['value'])}</td>"
        f"<td class=faint>{text(one['source'])}</td></tr>"
        for key, one in protocol.items()
        if isinstance(one, dict)
    )
    return f"<details><summary>protocol</summary><table>{rows}</table></details>"


def _cards(name: str, result: Result) -> str:
    """Answers with their images, to be narrowed to the right or the wrong ones."""
    types = {sample.id: type_of(sample) for sample in result.samples}
    cards = []
    for one in shown(result):
        kind = {True: "right", False: "wrong", None: ""}[one.correct]
        accepted = " / ".join(dict.fromkeys(one.answers))
        cards.append(
            f'<div class="card {kind}">{_thumbnail(result.images[one.id], one.question)}'
            f"<div>{text(one.question)}</div><div><b>{text(one.prediction or '(no answer)')}</b>"
            f"</div><div class=faint>{text(accepted)}</div>"
            f"<div class=faint>{text(types[one.id])}</div></div>"
        )
    if not cards:
        return ""
    choices = "".join(
        f'<input type=radio name="show-{text(name)}" id="{text(name)}-{kind}" class=only-{kind}'
        f'{" checked" if kind == "all" else ""}><label for="{text(name)}-{kind}">{kind}</label>'
        for kind in ("all", "right", "wrong")
    )
    return f"<div class=choose>{choices}<div class=cards>{''.join(cards)}</div></div>"


def _thumbnail(data: bytes, description: str) -> str:
    try:
        with Image.open(io.BytesIO(data)) as image:
            small = to_rgb(image)
            small.thumbnail((2 * _SIDE, 2 * _SIDE))
            buffer = io.BytesIO()
            small.save(buffer, "JPEG", quality=80)
    except (OSError, SyntaxError, Image.DecompressionBombError):
        return ""
    return shown_image(buffer.getvalue(), "jpeg", description[:200], small.width, small.height)
