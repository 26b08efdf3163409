import pytest

from ibtrain.data import catalog
from ibtrain.data.instructions import templates_by_form
from ibtrain.data.readers import FAMILIES

HELD_IN = {
    "coco_caption": "captioning",
    "web_capfilt": "captioning",
    "textcaps": "captioning_with_reading",
    "vqav2": "image_question_answering",
    "okvqa": "knowledge_question_answering",
    "aokvqa": "knowledge_question_answering",
    "ocr_vqa": "question_answering_with_reading",
    "vqav2_question_generation": "question_generation",
    "okvqa_question_generation": "question_generation",
    "aokvqa_question_generation": "question_generation",
    "llava_conversation": "llava_instruct",
    "llava_detail": "llava_instruct",
    "llava_reasoning": "llava_instruct",
}
HELD_OUT_SEEN = {
    "nocaps": "captioning",
    "flickr30k": "captioning",
    "vizwiz": "image_question_answering",
    "scienceqa": "knowledge_question_answering",
    "textvqa": "question_answering_with_reading",
}
HELD_OUT_UNSEEN = {
    "gqa": "visual_reasoning",
    "vsr": "visual_reasoning",
    "iconqa": "visual_reasoning",
    "msvd_qa": "video_question_answering",
    "msrvtt_qa": "video_question_answering",
    "ivqa": "video_question_answering",
    "visdial": "visual_dialog",
    "hateful_memes": "image_classification",
}


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
        "captions_train2014.json",
        "coco_karpathy_val.json",
        "coco_karpathy_val_gt.json",
        "coco_karpathy_test.json",
        "coco_karpathy_test_gt.json",
        "captions_val2014.json",
    )


@pytest.mark.parametrize(
    ("role", "expected"),
    [("held_in", HELD_IN), ("held_out_seen", HELD_OUT_SEEN), ("held_out_unseen", HELD_OUT_UNSEEN)],
)
def test_the_26_datasets_by_role_and_task(role: str, expected: dict[str, str]):
    found = {entry.name: entry.task for entry in catalog.entries() if entry.role == role}
    assert found == expected
    assert len(catalog.entries()) == 26


@pytest.mark.parametrize("entry", catalog.entries(), ids=lambda entry: entry.name)
def test_every_entry_is_whole(entry: catalog.DatasetEntry):
    assert entry.source and entry.metric and entry.files
    assert entry.reader in FAMILIES
    assert entry.evaluation_prompt
    assert tuple(templates_by_form(entry)) == entry.templates
    for form, file in templates_by_form(entry).items():
        assert file.templates[0] == entry.prompts[form]
