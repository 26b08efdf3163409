"""Where the toy keeps each dataset: its raw folder and the splits that are written.

As with copies of the real ones, datasets that share images lie in one folder or beside it: TextCaps
is about TextVQA's images, and the question generation sets are their parents' files read otherwise.
"""

from typing import NamedTuple


class Place(NamedTuple):
    """The raw folder of a dataset, relative to the toy's, and its splits, the default one first."""

    folder: str
    splits: tuple[str, ...]


PLACES = {
    "coco_caption": Place("coco", ("train", "val", "test")),
    "web_capfilt": Place("capfilt", ("train",)),
    "textcaps": Place("textvqa", ("train", "val")),
    "vqav2": Place("vqav2", ("train", "val")),
    "okvqa": Place("okvqa", ("train", "val")),
    "aokvqa": Place("aokvqa", ("train", "val")),
    "ocr_vqa": Place("ocr_vqa", ("train", "val", "test")),
    "vqav2_question_generation": Place("vqav2", ("train", "val")),
    "okvqa_question_generation": Place("okvqa", ("train", "val")),
    "aokvqa_question_generation": Place("aokvqa", ("train", "val")),
    "llava_conversation": Place("llava", ("train",)),
    "llava_detail": Place("llava", ("train",)),
    "llava_reasoning": Place("llava", ("train",)),
    "nocaps": Place("nocaps", ("val",)),
    "flickr30k": Place("flickr30k", ("test", "val", "train")),
    "gqa": Place("gqa", ("testdev", "challenge")),
    "vsr": Place("vsr", ("test", "dev", "train")),
    "iconqa": Place("iconqa", ("test", "val")),
    "vizwiz": Place("vizwiz", ("val", "test")),
    "scienceqa": Place("scienceqa", ("test", "val", "train")),
    "textvqa": Place("textvqa", ("val", "test")),
    "msvd_qa": Place("msvd_qa", ("test", "val")),
    "msrvtt_qa": Place("msrvtt_qa", ("test",)),
    "ivqa": Place("ivqa", ("test", "val")),
    "visdial": Place("visdial", ("val",)),
    "hateful_memes": Place("hateful_memes", ("dev_seen",)),
    "toy_text": Place("text", ("train",)),  # not one of the 26
}
