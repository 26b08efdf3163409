"""MSVD-QA and MSRVTT-QA: questions about videos that the annotations number or name."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from ibtrain.data import catalog, readers
from ibtrain.data.records import Answer, Record
from tests.data.readers.harness import prepared, raw_directory
from tests.data.videos import number_of, write_frames, write_video


def frame_numbers(record: Record) -> list[int]:
    return [number_of(Image.open(io.BytesIO(image))) for image in record.images]


def record(
    dataset: str, identity: str, question: str, answer: str, video_id: str, question_type: str
) -> Record:
    """A record without its frames."""
    return Record(
        dataset=dataset,
        task="video_question_answering",
        id=identity,
        images=(),
        instructions=(f"Question: {question} Short answer:",),
        answers=(Answer(answer),),
        form="visual_question_answering",
        plain=question,
        details={"video_id": video_id, "question_type": question_type},
    )


def test_the_mapping_names_the_videos_of_msvd(tmp_path: Path):
    raw = raw_directory("msvd_qa/official", tmp_path)
    write_video(raw / "YouTubeClips/-4wsuPCjDBc_5_15.avi", 20, codec="mpeg4")
    write_frames(raw / "YouTubeClips/-7KMZQEsJW4_205_208", 8)
    write_video(raw / "YouTubeClips/vid1303.mp4", 3)
    records, quarantine, dropped = prepared("msvd_qa", raw, "test")
    onion = "what does a woman do to an onion?"
    clip = "-4wsuPCjDBc_5_15"
    assert [replace(found, images=()) for found in records] == [
        record("msvd_qa", "37348", onion, "chop", clip, "what"),
        record("msvd_qa", "37349", "How many men are riding?", "two", "-7KMZQEsJW4_205_208", "how"),
        record("msvd_qa", "37350", "which boy plays the 🎸?", "garçon", "vid1303", "other"),
    ]
    assert [frame_numbers(found) for found in records] == [
        [2, 7, 12, 17],
        [1, 3, 5, 7],
        [0, 1, 1, 2],
    ]
    looked = "looked in RAW/YouTubeClips, RAW/videos, RAW/video, RAW/images, RAW"
    assert quarantine == [
        ("37351", f"no video vid1304 and no folder of its frames; {looked}"),
        ("37353", "the image path 'vid../../1301' leaves the image folder"),
    ]
    assert dropped == {"no answer": 1, "duplicate": 1}


def test_lavis_names_the_files(tmp_path: Path):
    raw = raw_directory("msvd_qa/lavis", tmp_path)
    write_video(raw / "videos/-4wsuPCjDBc_5_15.avi", 20, codec="mpeg4")
    records, quarantine, dropped = prepared("msvd_qa", raw, "test")
    onion = "what does a woman do to an onion?"
    assert [replace(found, images=()) for found in records] == [
        record("msvd_qa", "0", onion, "chop", "-4wsuPCjDBc_5_15", "what")
    ]
    assert frame_numbers(records[0]) == [2, 7, 12, 17]
    assert quarantine == [
        (
            "1",
            "the image path '/etc/passwd' leaves the image folder: it is not in RAW; write it as "
            "seen from there",
        ),
        ("2", "qa_test.json[2]: 'question' must be a string that is not empty, found 5"),
    ]
    assert dropped == {}


def test_the_videos_of_msrvtt_are_numbered(tmp_path: Path):
    raw = raw_directory("msrvtt_qa/official", tmp_path)
    write_video(raw / "TestVideo/video7010.mp4", 20, audio_seconds=1)
    (raw / "TestVideo/video7012.mp4").write_bytes(b"no video")
    records, quarantine, dropped = prepared("msrvtt_qa", raw, "test")
    question = "what are three people sitting on?"
    assert [replace(found, images=()) for found in records] == [
        record("msrvtt_qa", "158581", question, "couch", "video7010", "what")
    ]
    assert frame_numbers(records[0]) == [2, 7, 12, 17]
    looked = ", ".join(
        f"RAW/{root}" for root in ("videos", "TestVideo", "TrainValVideo", "video", "images")
    )
    missing, damaged = quarantine
    assert missing == (
        "158582",
        f"no video video7011 and no folder of its frames; looked in {looked}, RAW",
    )
    assert damaged[0] == "158583"
    assert damaged[1].startswith("RAW/TestVideo/video7012.mp4: not a readable video: ")
    assert dropped == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one vid1\nthree words here\n", "youtube_mapping.txt:2: expected a file and its name"),
        (b"one vid1\n\xff\xfe vid2\n", "youtube_mapping.txt: not UTF-8"),
    ],
)
def test_a_damaged_mapping_is_named(tmp_path: Path, content: bytes, message: str):
    raw = raw_directory("msvd_qa/official", tmp_path)
    (raw / "youtube_mapping.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(readers.read(raw, "test", catalog.get("msvd_qa")))


def test_without_a_mapping_videos_are_called_by_their_number(tmp_path: Path):
    raw = raw_directory("msvd_qa/official", tmp_path)
    (raw / "youtube_mapping.txt").unlink()
    write_video(raw / "YouTubeClips/vid1301.avi", 20, codec="mpeg4")
    records, _, _ = prepared("msvd_qa", raw, "test")
    onion = "what does a woman do to an onion?"
    assert [replace(found, images=()) for found in records] == [
        record("msvd_qa", "37348", onion, "chop", "vid1301", "what")
    ]
