"""Every dataset of the toy, read and prepared as its owner's files would be."""

from pathlib import Path

import pytest

from ibtrain.config import load_recipe
from ibtrain.data import catalog
from ibtrain.data.preparation.prepare import prepare
from ibtrain.data.shards.records import read_records
from ibtrain.data.toy import PLACES
from ibtrain.data.toy.world import WORDS

EXPECTED = {  # records of the default splits of a toy of 60 and 20 images
    "coco_caption": 300,
    "web_capfilt": 20,
    "textcaps": 50,
    "vqav2": 289,
    "okvqa": 20,
    "aokvqa": 120,
    "ocr_vqa": 80,
    "vqav2_question_generation": 289,
    "okvqa_question_generation": 20,
    "aokvqa_question_generation": 60,
    "llava_conversation": 156,
    "llava_detail": 20,
    "llava_reasoning": 30,
    "nocaps": 6,
    "flickr30k": 6,
    "gqa": 40,
    "vsr": 6,
    "iconqa": 6,
    "vizwiz": 6,
    "scienceqa": 6,
    "textvqa": 6,
    "msvd_qa": 6,
    "msrvtt_qa": 6,
    "ivqa": 6,
    "visdial": 60,
    "hateful_memes": 12,
    "toy_text": 409,
}


@pytest.mark.parametrize("dataset", PLACES)
def test_every_dataset_is_prepared_without_a_bad_annotation(
    toy: Path, tmp_path: Path, dataset: str
):
    entry = catalog.get(dataset)
    out = tmp_path / dataset
    report = prepare(dataset, toy / PLACES[dataset].folder, out, progress=False)
    assert (report.written, report.quarantined) == (EXPECTED[dataset], 0)
    assert report.split == entry.default_split
    dropped = {"scienceqa": {"no image": 6}}.get(dataset, {})
    assert report.dropped == dropped
    records = list(read_records(out))
    assert len(records) == EXPECTED[dataset]
    frames = 4 if entry.task == "video_question_answering" else int(dataset != "toy_text")
    for record in records:
        assert record.dataset == dataset and record.instructions and record.answers
        assert len(record.images) == frames
        if entry.role == "held_in" and entry.templates:
            assert len(record.instructions) >= 10
        if record.form.endswith("_with_reading"):
            assert any(word in record.instructions[0] for word in WORDS)


@pytest.mark.parametrize("dataset", [name for name in PLACES if len(PLACES[name].splits) > 1])
def test_the_other_splits_too(toy: Path, tmp_path: Path, dataset: str):
    for split in PLACES[dataset].splits[1:]:
        raw, out = toy / PLACES[dataset].folder, tmp_path / split
        report = prepare(dataset, raw, out, split=split, progress=False)
        assert report.written > 0 and report.quarantined == 0


def test_the_toy_recipe_trains_on_the_thirteen():
    held_in = [entry.name for entry in catalog.entries() if entry.role == "held_in"]
    recipe = load_recipe("toy")
    assert len(held_in) == 13 and recipe.data.balance == "sqrt"
    assert sorted(entry.dataset for entry in recipe.data.mixture) == sorted(held_in)
    for entry in recipe.data.mixture:
        assert entry.path == f"quickstart/shards/{entry.dataset}"
