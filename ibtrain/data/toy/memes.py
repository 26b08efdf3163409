"""HatefulMemes: hateful_memes/{dev_seen.jsonl,img/00001.png}.

The toy's memes are only unkind, to the shapes: one is labelled 1 where it says that nobody likes
something that its picture shows.
"""

from ibtrain.data.toy.knowledge import meme
from ibtrain.data.toy.pictures import ToyWriter, write_json_lines


def write(toy: ToyWriter) -> None:
    """Writes the split that is evaluated."""
    folder = toy.folder("hateful_memes")
    numbers = range(1, 1 + 2 * toy.few)
    rows = []
    for picture in toy.draw(folder, "memes", numbers, lambda number: f"img/{number:05d}.png"):
        text, unkind = meme(picture.scene, picture.random("meme"))
        rows.append({"id": picture.number, "img": picture.file, "label": int(unkind), "text": text})
    write_json_lines(folder / "dev_seen.jsonl", rows)
    toy.count("hateful_memes", "dev_seen", len(rows))
