"""HatefulMemes: hateful_memes/{dev_seen.jsonl,img/00001.png}.

The toy's memes are only unkind, to the shapes: one is labelled 1 where it says that nobody likes
something that its picture shows. As on the real ones, the text stands on the image.
"""

from PIL import Image, ImageDraw

from ibtrain.data.toy.knowledge import meme
from ibtrain.data.toy.pictures import Picture, ToyWriter, write_json_lines
from ibtrain.data.toy.world import small_font

_ENLARGED = 4  # so that a line of text is no wider than the picture
_LINE_HEIGHT = 14


def write(toy: ToyWriter) -> None:
    """Writes the split that is evaluated."""
    folder = toy.folder("hateful_memes")
    numbers = range(1, 1 + 2 * toy.few)
    rows = []
    for picture in toy.draw(folder, "memes", numbers, lambda number: f"img/{number:05d}.png"):
        text, unkind = meme(picture.scene, picture.random("meme"))
        _write_on(toy, picture, text)
        rows.append({"id": picture.number, "img": picture.file, "label": int(unkind), "text": text})
    write_json_lines(folder / "dev_seen.jsonl", rows)
    toy.count("hateful_memes", "dev_seen", len(rows))


def _write_on(toy: ToyWriter, picture: Picture, text: str) -> None:
    path = toy.folder("hateful_memes") / picture.file
    with Image.open(path) as drawn:
        width, height = (_ENLARGED * side for side in drawn.size)
        large = Image.new("RGB", (width, height + _LINE_HEIGHT))
        large.paste(drawn.resize((width, height), Image.Resampling.NEAREST))
    place = (2, height + 2)
    ImageDraw.Draw(large).text(place, text.upper(), fill=(255, 255, 255), font=small_font())
    large.save(path)
