"""Web CapFilt: BLIP's list of links with the images that were fetched, and LAVIS's of files."""

from pathlib import Path

from ibtrain.data.records import Answer, Record
from tests.data.readers.harness import instructions, jpeg, prepared, raw_directory


def record(image: Path, identity: str, caption: str) -> Record:
    return Record(
        dataset="web_capfilt",
        task="captioning",
        id=identity,
        images=(jpeg(image),),
        instructions=instructions("captioning"),
        answers=(Answer(caption),),
        form="captioning",
        plain="",
        details={},
    )


def test_links_stand_for_the_images_that_were_fetched(tmp_path: Path):
    raw = raw_directory("web_capfilt/official", tmp_path)
    fetched = raw / "images/00000"
    place = "ccs_synthetic_filtered_large.json"
    assert prepared("web_capfilt", raw, "train") == (
        [
            record(fetched / "000000000.jpg", "0", "a red car parked on the side of the road"),
            record(fetched / "000000002.jpg", "2", "ein Haus am See ☀"),
            record(fetched / "000000004.jpg", "4", "5"),
        ],
        [(f"{place}[5]", f"{place}[5]: 'image' is missing")],
        {"its image was not fetched": 1, "no caption": 1},
    )


def test_the_list_of_lavis(tmp_path: Path):
    raw = raw_directory("web_capfilt/lavis", tmp_path)
    dogs = raw / "images/cc3m/000/1.jpg"
    assert prepared("web_capfilt", raw, "train") == (
        [
            record(dogs, "0", 'two dogs "playing" in {snow}'),
            record(dogs, "1", "two dogs, again"),
            record(raw / "images/sbu/ü.jpg", "5", "a name that is not ASCII"),
        ],
        [
            ("cc3m/000/gone.jpg", "no image cc3m/000/gone.jpg; looked in RAW/images, RAW"),
            (
                "/etc/hostname.jpg",
                "the image path '/etc/hostname.jpg' leaves the image folder: it is not in RAW; "
                "write it as seen from there",
            ),
        ],
        {"no caption": 1},
    )
