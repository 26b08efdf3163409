"""HatefulMemes: the text in the prompt, yes or no."""

from pathlib import Path

from ibtrain.data.records import Answer, Record
from tests.data.readers.harness import jpeg, prepared, raw_directory


def record(raw: Path, identity: str, image: str, text: str, label: int | None) -> Record:
    labelled = {} if label is None else {"correct_choice": label, "label": label}
    return Record(
        dataset="hateful_memes",
        task="image_classification",
        id=identity,
        images=(jpeg(raw / image),),
        instructions=(f'This is an image with: "{text}" written on it. Is it hateful? Answer:',),
        answers=() if label is None else (Answer(["no", "yes"][label]),),
        form="hateful",
        plain=text,
        details={"text": text, "choices": ["no", "yes"], **labelled},
    )


def test_a_meme_is_hateful_or_not(tmp_path: Path):
    raw = raw_directory("hateful_memes/official", tmp_path)
    records, quarantine, dropped = prepared("hateful_memes", raw, "dev_seen")
    assert records == [
        record(raw, "8291", "img/08291.png", "nobody wants you here", 1),
        record(raw, "46971", "img/46971.png", 'bravery at its "finest" {so} to speak - ça va', 0),
    ]
    assert quarantine == [
        ("3745", "no image img/03745.png; looked in RAW, RAW/images"),
        ("37198", "dev_seen.jsonl:6: 'label' must be a whole number, found True"),
        ("37199", "dev_seen.jsonl:7: 'text' must be a string that is not empty, found ' '"),
    ]
    assert dropped == {"duplicate": 1, "no answer": 1}


def test_a_test_split_of_the_first_release_has_no_labels(tmp_path: Path):
    raw = raw_directory("hateful_memes/official", tmp_path)
    assert prepared("hateful_memes", raw, "test_unseen") == (
        [record(raw, "16395", "img/16395.png", "batteries sold seperately", None)],
        [],
        {},
    )
