import pytest

from ibtrain.data import catalog
from ibtrain.data.instructions import templates


def test_names_are_found_and_misspelt_ones_answered_with_the_nearest():
    assert catalog.get("vqav2").name == "vqav2"
    with pytest.raises(ValueError, match="did you mean 'coco_caption'"):
        catalog.get("coco_captions")
    with pytest.raises(ValueError, match="known are coco_caption"):
        catalog.get("zzzzzz")


def test_files_are_named_once():
    assert catalog.get("coco_caption").files == (
        "coco_karpathy_train.json",
        "dataset_coco.json",
        "coco_karpathy_val.json",
        "coco_karpathy_test.json",
    )


def test_roles_splits_and_templates_are_whole():
    roles = {entry.name: entry.role for entry in catalog.entries()}
    assert roles == {
        "coco_caption": "held_in",
        "vqav2": "held_in",
        "aokvqa": "held_in",
        "llava_conversation": "held_in",
        "gqa": "held_out_unseen",
    }
    for entry in catalog.entries():
        assert entry.splits and entry.files and entry.source
        assert set(entry.sizes) <= set(entry.splits)
        for task in entry.templates:
            assert templates(task).task == task
