"""A sheet of questions, answers and images, to look at."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ibtrain.data.images import to_rgb

_WIDTH, _PICTURE, _MARGIN, _GAP, _PADDING = 272, 240, 28, 20, 16
_TITLE_SIZE, _QUESTION_SIZE, _ANSWER_SIZE, _LABEL_SIZE = 22, 16, 17, 12
_QUESTION_LINES, _ANSWER_LINES = 3, 2
_PAPER, _CARD, _EDGE = "#f3f4f6", "#ffffff", "#d9dce1"
_INK, _FAINT, _RIGHT, _WRONG = "#1f2328", "#6b7280", "#15803d", "#b91c1c"
_LEADING = 1.3


@dataclass(frozen=True)
class Prediction:
    """One answered question, as it is shown; `correct` is None where nothing says."""

    id: str
    question: str
    prediction: str
    answers: tuple[str, ...]
    question_type: str
    correct: bool | None


def picture(
    predictions: Sequence[Prediction],
    images: Mapping[str, bytes],
    out: Path,
    title: str = "Questions and answers",
    count: int = 12,
    columns: int = 4,
) -> None:
    """Draws a sheet of pictures with question, the model's answer and the right one, as a PNG.

    Args:
        predictions: of a benchmark; those whose picture is in `images` are shown, spread over the
            question types in turn.
        images: encoded images by prediction id.
        out: the file to write.
        title: above the sheet.
        count: at most so many pictures.
        columns: side by side.

    Raises:
        ValueError: when none of the predictions has its picture in `images`.
    """
    shown = _spread([one for one in predictions if one.id in images], count)
    if not shown:
        raise ValueError("none of the predictions has its picture: nothing to draw")
    cards = [_card(prediction, images[prediction.id]) for prediction in shown]
    columns = min(columns, len(cards))
    rows = [cards[begin : begin + columns] for begin in range(0, len(cards), columns)]
    heights = [max(card.height for card in row) + _PADDING for row in rows]
    top = _MARGIN + int(_TITLE_SIZE * 1.9)
    width = 2 * _MARGIN + columns * _WIDTH + (columns - 1) * _GAP
    sheet = Image.new("RGB", (width, top + sum(heights) + (len(rows) - 1) * _GAP + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = _font(_TITLE_SIZE, bold=True)
    heading = _wrapped(title, font, width - 2 * _MARGIN, 1)[0]
    draw.text((_MARGIN, _MARGIN - 4), heading, fill=_INK, font=font)
    for row, height in zip(rows, heights, strict=True):
        for column, card in enumerate(row):
            left = _MARGIN + column * (_WIDTH + _GAP)
            frame = (left, top, left + _WIDTH - 1, top + height - 1)
            draw.rounded_rectangle(frame, radius=10, fill=_CARD, outline=_EDGE)
            sheet.paste(card, (left + 1, top + _PADDING // 2))
        top += height + _GAP
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, "PNG", optimize=True)


def _spread(predictions: Sequence[Prediction], count: int) -> list[Prediction]:
    """At most `count`, taking the question types in turn."""
    by_type: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        by_type.setdefault(prediction.question_type, []).append(prediction)
    queues = list(by_type.values())
    longest = max((len(queue) for queue in queues), default=0)
    turns = [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]
    return turns[:count]


def _card(prediction: Prediction, image: bytes) -> Image.Image:
    """Picture, question, answer; one pixel narrower than its frame on each side."""
    inner = _WIDTH - 2 * _PADDING
    lines: list[tuple[str, int, bool, str]] = []
    bold = _font(_QUESTION_SIZE, bold=True)
    for text in _wrapped(prediction.question, bold, inner, _QUESTION_LINES):
        lines.append((text, _QUESTION_SIZE, True, _INK))
    lines.append(("", _LABEL_SIZE // 2, False, _INK))
    verdict = {True: _RIGHT, False: _WRONG, None: _INK}[prediction.correct]
    mark = {True: "\u2713", False: "\u2717", None: "\u2022"}[prediction.correct]
    said = f"{mark} {prediction.prediction or '(no answer)'}"
    lines += _labelled("the model says", said, verdict, inner)
    if prediction.correct is False:
        lines.append(("", _LABEL_SIZE // 2, False, _INK))
        lines += _labelled("right is", " / ".join(dict.fromkeys(prediction.answers)), _RIGHT, inner)
    heights = [round(size * _LEADING) for _, size, _, _ in lines]
    card = Image.new("RGB", (_WIDTH - 2, _PICTURE + 20 + sum(heights)), _CARD)
    card.paste(_enlarged(image), ((card.width - _PICTURE) // 2, 7))
    draw = ImageDraw.Draw(card)
    top = _PICTURE + 16
    for (text, size, heavy, colour), height in zip(lines, heights, strict=True):
        draw.text((_PADDING - 1, top), text, fill=colour, font=_font(size, bold=heavy))
        top += height
    return card


def _labelled(label: str, text: str, colour: str, width: int) -> list[tuple[str, int, bool, str]]:
    wrapped = _wrapped(text, _font(_ANSWER_SIZE, bold=True), width, _ANSWER_LINES)
    return [
        (label, _LABEL_SIZE, False, _FAINT),
        *((line, _ANSWER_SIZE, True, colour) for line in wrapped),
    ]


def _enlarged(data: bytes) -> Image.Image:
    """The image in a square of `_PICTURE` pixels; small ones enlarged without smoothing."""
    with Image.open(io.BytesIO(data)) as image:
        scale = _PICTURE / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        smooth = Image.Resampling.LANCZOS if scale < 2 else Image.Resampling.NEAREST
        resized = to_rgb(image).resize(size, smooth)
    square = Image.new("RGB", (_PICTURE, _PICTURE), _PAPER)
    square.paste(resized, ((_PICTURE - size[0]) // 2, (_PICTURE - size[1]) // 2))
    return square


def _font(size: int, *, bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has most alphabets; without it Pillow's own,
    which has the Latin one.
    """
    try:
        import matplotlib
    except ImportError:
        own = ImageFont.load_default(size)
        assert isinstance(own, ImageFont.FreeTypeFont)
        return own
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int, lines: int) -> list[str]:
    """Lines no wider than `width`; what does not fit in the last one becomes an ellipsis."""
    done: list[str] = [""]
    for word in text.split():
        longer = f"{done[-1]} {word}".strip()
        if font.getlength(longer) <= width or not done[-1]:
            done[-1] = longer
        else:
            done.append(word)
    kept = done[:lines]
    cut = len(done) > lines
    for index, line in enumerate(kept):
        end = "\u2026" if cut and index == lines - 1 else ""
        short = line
        while short and font.getlength(short + end) > width:
            short, end = short[:-1].rstrip(), "\u2026"
        kept[index] = short + end
    return kept
