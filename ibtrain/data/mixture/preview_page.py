"""The preview of a mixture as an HTML page, and the cards of samples that other pages show too."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from ibtrain import pages
from ibtrain.pages import text as _text

MOST_SAMPLES = 500
"""Of each dataset on one page."""
_OPEN_VARIANTS = 3


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
    sections = "".join(_section(number, dataset) for number, dataset in enumerate(datasets))
    return pages.page(
        f"Mixture of {title}",
        pages.facts(facts),
        _chart(datasets) + sections,
        heading=title,
        style=CARD_STYLE + _CHART_STYLE,
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
    forms = "".join(
        f" &middot; {_text(form.replace('_', ' '))} {draws:,}" for form, draws in dataset.forms
    )
    trouble = f"<p class=trouble>{_text(dataset.trouble)}</p>" if dataset.trouble else ""
    return (
        f'<section id="d{number}"><h2>{_text(dataset.name)}</h2>'
        f"<p class=note>{_text(dataset.task.replace('_', ' '))} &middot; {dataset.share:.2%} of "
        f"the mixture &middot; {dataset.size:,} samples, each seen {dataset.epochs:.2f} times per "
        f"epoch{forms}</p>{trouble}{cards(dataset.samples)}</section>\n"
    )


def cards(samples: Iterable[ShownSample]) -> str:
    """A card for each sample; the page needs CARD_STYLE."""
    return f"<div class=cards>{''.join(_card(sample) for sample in samples)}</div>"


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
        pages.image(
            _jpeg(picture),
            "jpeg",
            f"{f'frame {number}' if len(pictures) > 1 else 'the image'} as the model sees it",
            picture.shape[1],
            picture.shape[0],
        )
        for number, picture in enumerate(pictures, start=1)
    )
    return f"<div class={kind}>{images}</div>"


def _jpeg(picture: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


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


CARD_STYLE = """
article{background:var(--card);border:1px solid var(--line);border-radius:10px;overflow:hidden}
.picture,.frames,.textalone{background:var(--line)}
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
"""
_CHART_STYLE = """
.legend span{display:inline-block;width:18px;height:9px;border-radius:2px;margin-right:4px}
.legend span+span{margin-left:14px}
.key-share{background:var(--accent)}.key-size{background:var(--grey);margin-left:14px}
td.bar{width:46%;min-width:90px}
td.bar svg{display:block;width:100%;height:20px}
rect.share{fill:var(--accent)}rect.size{fill:var(--grey)}
"""
