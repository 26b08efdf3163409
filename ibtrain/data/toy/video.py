"""MSVD-QA, MSRVTT-QA and iVQA: questions about short clips, in which the objects tremble.

msvd_qa/{val,test}_qa.json, msvd_qa/youtube_mapping.txt, msvd_qa/YouTubeClips/*.avi
msrvtt_qa/test_qa.json, msrvtt_qa/TestVideo/video7010.mp4
ivqa/{val,test}.csv, ivqa/videos/VIDEO/*.jpg (the frames of each in a folder)
"""

import csv
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from ibtrain.data.toy.pictures import (
    ToyWriter,
    annotators_answers,
    balanced,
    save_image,
    write_json,
)
from ibtrain.data.toy.text import Question, questions
from ibtrain.data.toy.world import IMAGE_SIZE, Scene, render, sample_scene

FRAMES = 6
_FRAMES_PER_SECOND = 4
_BITS_PER_SECOND = 1_000_000  # enough for these frames to stay as they were drawn
_ANSWERERS = 5  # of iVQA
_MSRVTT_CATEGORIES = 20


def write(toy: ToyWriter) -> None:
    """Writes the three datasets."""
    _write_msvd(toy)
    _write_msrvtt(toy)
    for split in ("val", "test"):
        _write_ivqa(toy, split)


def write_video(path: Path, scene: Scene, random: Random) -> None:
    """Encodes FRAMES renderings of a scene as MPEG-4 in the container that the suffix names."""
    import av  # its codecs take long to load, and a world may be written without videos

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=_FRAMES_PER_SECOND)
        stream.width = stream.height = IMAGE_SIZE
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = _BITS_PER_SECOND
        stream.codec_context.thread_count = 1
        for _ in range(FRAMES):
            pixels = np.asarray(render(scene, random))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def _one_word_question(scene: Scene, random: Random, used: Counter[str]) -> Question:
    """As in the real sets, every answer is one word."""
    asked = [asked for asked in questions(scene, random) if " " not in asked.answer]
    return balanced(asked, used, 1)[0]


def _lower(question: Question) -> str:
    """The real questions were made from captions by a program, in small letters."""
    return question.question.lower()


def _write_msvd(toy: ToyWriter) -> None:
    """The annotations number the videos; the mapping names their files."""
    folder = toy.folder("msvd_qa")
    mapping: list[str] = []
    for split in ("val", "test"):
        used: Counter[str] = Counter()
        rows: list[dict[str, Any]] = []
        for index in range(toy.few):
            random = toy.random(f"msvd/{split}/{index}")
            scene = sample_scene(random, held_out=False)
            number = len(mapping) + 1
            name = f"toy{number:08d}_0_2"  # a clip of YouTube with its first and last second
            mapping.append(f"{name} vid{number}\n")
            write_video(folder / "YouTubeClips" / f"{name}.avi", scene, random)
            question = _one_word_question(scene, random, used)
            rows.append(
                {
                    "answer": question.answer,
                    "id": number - 1,
                    "question": _lower(question),
                    "video_id": number,
                }
            )
        write_json(folder / f"{split}_qa.json", rows)
        toy.count("msvd_qa", split, len(rows))
    (folder / "youtube_mapping.txt").write_text("".join(mapping), encoding="utf-8")


def _write_msrvtt(toy: ToyWriter) -> None:
    folder = toy.folder("msrvtt_qa")
    used: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    for number in range(7010, 7010 + toy.few):  # the first video of the real test split
        random = toy.random(f"msrvtt/{number}")
        scene = sample_scene(random, held_out=False)
        write_video(folder / "TestVideo" / f"video{number}.mp4", scene, random)
        question = _one_word_question(scene, random, used)
        rows.append(
            {
                "answer": question.answer,
                "category_id": random.randrange(_MSRVTT_CATEGORIES),
                "id": len(rows),
                "question": _lower(question),
                "video_id": number,
            }
        )
    write_json(folder / "test_qa.json", rows)
    toy.count("msrvtt_qa", "test", len(rows))


def _write_ivqa(toy: ToyWriter, split: str) -> None:
    folder = toy.folder("ivqa")
    used: Counter[str] = Counter()
    answers = [f"answer{number}" for number in range(1, 1 + _ANSWERERS)]
    with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["video_id", "question", *answers])
        for index in range(toy.few):
            video = f"{split}{index:08d}"
            random = toy.random(f"ivqa/{video}")
            scene = sample_scene(random, held_out=False)
            for number in range(FRAMES):
                save_image(folder / "videos" / video / f"{number:04d}.jpg", scene, random)
            (question,) = balanced(questions(scene, random), used, 1)
            given = annotators_answers(question, random, _ANSWERERS)
            table.writerow([video, question.question, *given])
    toy.count("ivqa", split, toy.few)
