"""The files are as the datasets' owners publish them: every field, and nothing but the truth."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from ibtrain.data.toy.world import COLORS

QUADRANTS = ("top left", "top right", "bottom left", "bottom right")


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def load_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def longest_run(row: np.ndarray) -> int:
    """The most True values side by side."""
    return max((len(run) for run in "".join("x" if on else " " for on in row).split()), default=0)


def colors_seen(image: Image.Image) -> dict[int, str]:
    """The color of the object in each quadrant that has one, told from the pixels alone.

    Every shape is somewhere more than eight pixels wide, which no stroke of a letter is.
    """
    levels = np.asarray(image.convert("RGB")).astype(int)
    seen = {}
    for quadrant in range(4):
        top, left = 24 * (quadrant // 2), 24 * (quadrant % 2)
        part = levels[top : top + 24, left : left + 24]
        for name, level in COLORS.items():
            near = np.abs(part - level).max(axis=-1) < 55
            if max(longest_run(row) for row in near) >= 8:
                seen[quadrant] = name
    return seen


KEYS = {
    "coco/annotations/coco_karpathy_train.json": (
        lambda found: found[0],
        {"image", "caption", "image_id"},
    ),
    "coco/annotations/dataset_coco.json": (
        lambda found: found["images"][0],
        {"filepath", "filename", "cocoid", "imgid", "split", "sentids", "sentences"},
    ),
    "capfilt/annotation.json": (lambda found: found[0], {"image", "caption", "url"}),
    "nocaps/nocaps_val_4500_captions.json": (
        lambda found: found["images"][0],
        {
            *("id", "open_images_id", "file_name", "coco_url", "width", "height"),
            *("license", "date_captured", "domain"),
        },
    ),
    "flickr30k/dataset_flickr30k.json": (
        lambda found: found["images"][0],
        {"filename", "imgid", "split", "sentids", "sentences"},
    ),
    "vqav2/v2_OpenEnded_mscoco_train2014_questions.json": (
        lambda found: found["questions"][0],
        {"image_id", "question", "question_id"},
    ),
    "vqav2/v2_mscoco_train2014_annotations.json": (
        lambda found: found["annotations"][0],
        {
            *("question_type", "multiple_choice_answer", "answers", "image_id"),
            *("answer_type", "question_id"),
        },
    ),
    "okvqa/mscoco_val2014_annotations.json": (
        lambda found: found["annotations"][0],
        {"image_id", "answer_type", "question_type", "question_id", "answers", "confidence"},
    ),
    "aokvqa/aokvqa_v1p0_train.json": (
        lambda found: found[0],
        {
            *("split", "image_id", "question_id", "question", "choices", "correct_choice_idx"),
            *("direct_answers", "difficult_direct_answer", "rationales"),
        },
    ),
    "textvqa/TextCaps_0.1_train.json": (
        lambda found: found["data"][0],
        {
            *("caption_id", "caption_str", "caption_tokens", "reference_strs", "reference_tokens"),
            *("image_id", "image_classes", "image_name", "image_path", "set_name"),
            *("flickr_original_url", "flickr_300k_url", "image_width", "image_height"),
        },
    ),
    "textvqa/TextVQA_0.5.1_val.json": (
        lambda found: found["data"][0],
        {
            *("question", "question_id", "question_tokens", "image_id", "image_classes"),
            *("answers", "set_name"),
            *("flickr_original_url", "flickr_300k_url", "image_width", "image_height"),
        },
    ),
    "textvqa/TextVQA_Rosetta_OCR_v0.2_val.json": (
        lambda found: found["data"][0],
        {
            *("image_id", "ocr_tokens", "ocr_info"),
            *("flickr_original_url", "flickr_300k_url", "image_width", "image_height"),
        },
    ),
    "ocr_vqa/dataset.json": (
        lambda found: next(iter(found.values())),
        {"imageURL", "questions", "answers", "title", "authorName", "genre", "split"},
    ),
    "llava/detail_23k.json": (lambda found: found[0], {"id", "image", "conversations"}),
    "gqa/testdev_balanced_questions.json": (
        lambda found: next(iter(found.values())),
        {
            *("semantic", "entailed", "equivalent", "question", "imageId", "isBalanced"),
            *("groups", "answer", "semanticStr", "annotations", "types", "fullAnswer"),
        },
    ),
    "iconqa/iconqa/test/choose_txt/1/data.json": (
        lambda found: found,
        {"question", "choices", "answer", "ques_type", "grade", "label"},
    ),
    "vizwiz/val.json": (
        lambda found: found[0],
        {"image", "question", "answers", "answer_type", "answerable"},
    ),
    "vizwiz/test.json": (lambda found: found[0], {"image", "question"}),
    "scienceqa/problems.json": (
        lambda found: next(iter(found.values())),
        {
            *("question", "choices", "answer", "hint", "image", "task", "grade", "subject"),
            *("topic", "category", "skill", "lecture", "solution", "split"),
        },
    ),
    "msvd_qa/test_qa.json": (
        lambda found: found[0],
        {"answer", "id", "question", "video_id"},
    ),
    "msrvtt_qa/test_qa.json": (
        lambda found: found[0],
        {"answer", "category_id", "id", "question", "video_id"},
    ),
    "visdial/visdial_1.0_val.json": (
        lambda found: found["data"]["dialogs"][0]["dialog"][0],
        {"question", "answer", "answer_options", "gt_index"},
    ),
}


@pytest.mark.parametrize("name", KEYS)
def test_the_fields_of_an_entry(toy: Path, name: str):
    entry, keys = KEYS[name]
    assert set(entry(load(toy / name))) == keys


def test_questions_have_ten_annotators(toy: Path):
    vqav2 = load(toy / "vqav2/v2_mscoco_train2014_annotations.json")["annotations"]
    assert all([a["answer_id"] for a in row["answers"]] == list(range(1, 11)) for row in vqav2)
    okvqa = load(toy / "okvqa/mscoco_train2014_annotations.json")["annotations"]
    for row in okvqa:
        counts = Counter(answer["answer"] for answer in row["answers"])
        assert sum(counts.values()) == 10
        assert not [count for count in counts.values() if count % 2]  # five people, each twice
    assert any(len({a["answer"] for a in row["answers"]}) == 2 for row in okvqa)
    aokvqa = load(toy / "aokvqa/aokvqa_v1p0_train.json")
    assert all(len(row["direct_answers"]) == 10 and len(row["choices"]) == 4 for row in aokvqa)


def test_what_is_said_of_colors_and_places_is_what_the_pixels_show(toy: Path):
    """GQA's questions that name an object by its color, answered from the image file."""
    checked = 0
    for row in load(toy / "gqa/testdev_balanced_questions.json").values():
        seen = colors_seen(Image.open(toy / f"gqa/images/{row['imageId']}.jpg"))
        question = row["question"]
        if question == "How many objects are there?":
            assert row["answer"] == str(len(seen))
            checked += 1
        elif question.startswith("What color is"):
            assert row["answer"] in seen.values()
            checked += 1
        elif question.startswith("Where is the ") and question.endswith(" object?"):
            color = question.split()[3]
            (quadrant,) = [place for place, name in seen.items() if name == color]
            assert row["answer"] == QUADRANTS[quadrant]
            checked += 1
    assert checked >= 8


def test_statements_are_labelled_as_the_pixels_show(toy: Path):
    """VSR's statements about two objects, checked against the image file."""
    rows = [
        row
        for split in ("train", "dev", "test")
        for row in load_lines(toy / f"vsr/splits/zeroshot/{split}.jsonl")
    ]
    assert {row["label"] for row in rows} == {0, 1}
    checked = 0
    for row in rows:
        assert set(row) == {
            *("image", "image_link", "caption", "label", "relation", "annotator_id"),
            *("vote_true_validator_id", "vote_false_validator_id"),
        }
        assert bool(row["vote_true_validator_id"]) == bool(row["label"])
        seen = colors_seen(Image.open(toy / "vsr/images" / row["image"]))
        before, _, after = row["caption"].partition(f" is {row['relation']} ")
        places = [
            [place for place, name in seen.items() if f" {name} " in f" {text} "]
            for text in (before.lower(), after)
        ]
        if [len(found) for found in places] != [1, 1]:
            continue  # a word, or a color that two objects share
        (here,), (there,) = places
        truth = {
            "left of": here % 2 < there % 2,
            "right of": here % 2 > there % 2,
            "above": here < 2 <= there,
            "below": there < 2 <= here,
        }
        assert truth[row["relation"]] == bool(row["label"]), row
        checked += 1
    assert checked >= 3


def test_the_word_that_is_written_is_the_token_that_was_read(toy: Path):
    ocr = {
        row["image_id"]: row
        for row in load(toy / "textvqa/TextVQA_Rosetta_OCR_v0.2_train.json")["data"]
    }
    captions = load(toy / "textvqa/TextCaps_0.1_train.json")["data"]
    assert len(captions) == 5 * len(ocr)
    assert any(not row["ocr_tokens"] for row in ocr.values())
    for row in captions:
        tokens = ocr[row["image_id"]]["ocr_tokens"]
        said = row["caption_str"].partition("the word ")[2].split()[:1]
        assert [word.strip(",:") for word in said] == tokens
        assert [info["word"] for info in ocr[row["image_id"]]["ocr_info"]] == tokens
        assert row["caption_str"] in row["reference_strs"] and len(row["reference_strs"]) == 5
        assert (toy / f"textvqa/train_images/{row['image_id']}.jpg").is_file()


def test_books_are_of_all_three_splits(toy: Path):
    books = load(toy / "ocr_vqa/dataset.json")
    tokens = {
        row["image_id"]: row["ocr_tokens"] for row in load(toy / "ocr_vqa/ocr_tokens.json")["data"]
    }
    assert Counter(book["split"] for book in books.values()) == {1: 20, 2: 6, 3: 6}
    for identity, book in books.items():
        assert tokens[identity] == [book["title"]]
        asked = dict(zip(book["questions"], book["answers"], strict=True))
        assert asked["What is the title of this book?"] == book["title"]
        assert asked["What is the genre of this book?"] == book["genre"]
        assert sorted(asked.values())[-1] == "yes" and "no" in asked.values()
        for question, answer in asked.items():
            if question.startswith("Is this"):
                assert question.endswith(f" {book['genre']}?") == (answer == "yes")
        assert (toy / f"ocr_vqa/images/{identity}.jpg").is_file()


def test_llava_marks_the_image_once_in_the_first_turn(toy: Path):
    marks = Counter()
    for name in ("conversation_58k", "detail_23k", "complex_reasoning_77k"):
        for row in load(toy / f"llava/{name}.json"):
            speakers = [turn["from"] for turn in row["conversations"]]
            assert speakers == ["human", "gpt"] * (len(speakers) // 2)
            first, *rest = (turn["value"] for turn in row["conversations"])
            assert first.count("<image>") == 1
            assert not any("<image>" in value for value in rest)
            marks[first.startswith("<image>\n")] += 1
            number = int(row["id"])
            assert row["image"] == f"{number:012d}.jpg"
            assert (toy / f"coco/images/train2014/COCO_train2014_{number:012d}.jpg").is_file()
    assert set(marks) == {True, False}


def test_vizwiz_has_questions_without_an_answer(toy: Path):
    rows = load(toy / "vizwiz/val.json")
    kinds = Counter(row["answer_type"] for row in rows)
    assert kinds["unanswerable"] == 2 and sum(kinds.values()) == 6
    for row in rows:
        assert len(row["answers"]) == 10 and set(row["answers"][0]) == {
            "answer",
            "answer_confidence",
        }
        assert row["answerable"] == (row["answer_type"] != "unanswerable")
        most = Counter(answer["answer"] for answer in row["answers"]).most_common(1)[0][0]
        assert (most == "unanswerable") == (not row["answerable"])


def test_scienceqa_has_problems_with_and_without_image_and_hint(toy: Path):
    problems = load(toy / "scienceqa/problems.json")
    splits = load(toy / "scienceqa/pid_splits.json")
    assert set(splits) == {
        *("train", "val", "test", "trainval", "minitrain", "minival", "minitest")
    }
    kinds = Counter((bool(row["image"]), bool(row["hint"])) for row in problems.values())
    assert len(kinds) == 4
    for split in ("train", "val", "test"):
        for pid in splits[split]:
            row = problems[pid]
            assert row["split"] == split and row["choices"][row["answer"]] in row["solution"]
            image = toy / f"scienceqa/images/{split}/{pid}/image.png"
            assert image.is_file() == (row["image"] == "image.png")


def test_iconqa_has_a_folder_for_each_question(toy: Path):
    folders = sorted((toy / "iconqa/iconqa/test/choose_txt").iterdir())
    assert len(folders) == 6
    for folder in folders:
        assert {path.name for path in folder.iterdir()} == {"data.json", "image.png"}
        row = load(folder / "data.json")
        assert 0 <= row["answer"] < len(row["choices"]) == 4
        assert Image.open(folder / "image.png").format == "PNG"


def test_nocaps_marks_what_training_has_not(toy: Path):
    content = load(toy / "nocaps/nocaps_val_4500_captions.json")
    per_image = Counter(row["image_id"] for row in content["annotations"])
    assert set(per_image.values()) == {10} and len(per_image) == len(content["images"])
    assert Counter(image["domain"] for image in content["images"]) == {
        "out-domain": 2,
        "in-domain": 4,
    }
    assert all((toy / "nocaps/images" / row["file_name"]).is_file() for row in content["images"])


def test_videos_are_real_files_that_show_their_scene(toy: Path):
    mapping = (toy / "msvd_qa/youtube_mapping.txt").read_text(encoding="utf-8").splitlines()
    names = {line.split()[1]: line.split()[0] for line in mapping}
    asked = [
        (toy / "msvd_qa/YouTubeClips" / (names[f"vid{row['video_id']}"] + ".avi"), row)
        for row in load(toy / "msvd_qa/test_qa.json")
    ] + [
        (toy / f"msrvtt_qa/TestVideo/video{row['video_id']}.mp4", row)
        for row in load(toy / "msrvtt_qa/test_qa.json")
    ]
    checked = 0
    for path, row in asked:
        with av.open(str(path)) as container:
            frames = [frame.to_image() for frame in container.decode(video=0)]
        assert len(frames) == 6 and frames[0].size == (48, 48)
        assert " " not in row["answer"] and row["question"] == row["question"].lower()
        if row["question"].startswith("what color"):
            assert all(row["answer"] in colors_seen(frame).values() for frame in frames)
            checked += 1
    assert checked >= 2


def test_ivqa_has_five_answers_and_folders_of_frames(toy: Path):
    with (toy / "ivqa/test.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["video_id", "question", *(f"answer{n}" for n in range(1, 6))]
    assert len(rows) == 6 and all(row["answer5"] for row in rows)
    for row in rows:
        assert len(list((toy / "ivqa/videos" / row["video_id"]).iterdir())) == 6


def test_visdial_has_ten_rounds_and_a_hundred_answers(toy: Path):
    data = load(toy / "visdial/visdial_1.0_val.json")["data"]
    for dialog in data["dialogs"]:
        assert len(dialog["dialog"]) == 10
        assert len({turn["question"] for turn in dialog["dialog"]}) == 10
        name = f"VisualDialog_val2018_{dialog['image_id']:012d}.jpg"
        assert (toy / "visdial/images/VisualDialog_val2018" / name).is_file()
        for turn in dialog["dialog"]:
            options = turn["answer_options"]
            assert len(set(options)) == 100
            assert options[turn["gt_index"]] == turn["answer"]
            right = data["answers"][turn["answer"]].split()
            sharing = [o for o in options if set(right) & set(data["answers"][o].split())]
            assert sharing == [turn["answer"]]  # no other option may be as right
    texts = [data["answers"], data["questions"]]
    assert all(len(set(text)) == len(text) for text in texts)


def test_memes_have_both_labels(toy: Path):
    rows = load_lines(toy / "hateful_memes/dev_seen.jsonl")
    assert {row["label"] for row in rows} == {0, 1}
    for row in rows:
        assert set(row) == {"id", "img", "label", "text"}
        assert Image.open(toy / "hateful_memes" / row["img"]).format == "PNG"
