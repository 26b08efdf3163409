"""iVQA: a CSV file with five answers to each question about a clip."""

import io
from dataclasses import replace
from pathlib import Path

from PIL import Image

from ibtrain.data.records import Answer, Record
from tests.data.readers.harness import prepared, raw_directory
from tests.data.videos import number_of, write_frames, write_video


def test_answers_weigh_as_many_as_gave_them(tmp_path: Path):
    raw = raw_directory("ivqa/official", tmp_path)
    write_video(raw / "videos/rqmDgsACyQ8.webm", 20, codec="libvpx-vp9")
    write_frames(raw / "videos/-1aBcDeFg2H", 12)
    records, quarantine, dropped = prepared("ivqa", raw, "test")
    cutting = "What is he cutting, and with what?"
    pouring = "Was gießt sie ein? 🫖"
    assert [replace(record, images=()) for record in records] == [
        Record(
            dataset="ivqa",
            task="video_question_answering",
            id="rqmDgsACyQ8-1",
            images=(),
            instructions=(f"Question: {cutting} Short answer:",),
            answers=(Answer("apple", 3.0), Answer("Apple", 1.0), Answer("knife, apple", 1.0)),
            form="visual_question_answering",
            plain=cutting,
            details={"video_id": "rqmDgsACyQ8", "start": "35", "end": "45"},
        ),
        Record(
            dataset="ivqa",
            task="video_question_answering",
            id="-1aBcDeFg2H-2",
            images=(),
            instructions=(f"Question: {pouring} Short answer:",),
            answers=(Answer("Tee", 2.0), Answer("tee", 1.0), Answer("tea", 1.0)),
            form="visual_question_answering",
            plain=pouring,
            details={"video_id": "-1aBcDeFg2H", "start": "0", "end": "9"},
        ),
    ]
    numbers = [
        [number_of(Image.open(io.BytesIO(image))) for image in record.images] for record in records
    ]
    assert numbers == [[2, 7, 12, 17], [1, 4, 7, 10]]
    looked = "looked in RAW/videos, RAW/video, RAW/images, RAW"
    assert [reason for _, reason in quarantine] == [
        f"no video missing0000 and no folder of its frames; {looked}",
        "test.csv:6: 'question' is missing",
    ]
    assert dropped == {"no answer": 1}
