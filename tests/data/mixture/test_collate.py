from dataclasses import fields

import pytest
import torch

from ibtrain.data.mixture.collate import Sample, collate
from tests.tiny import IdTokenizer

SIDE = 4


def sample(images: int, instruction: str, answer: str, name: str = "a", fill: float = 1.0):
    pixels = torch.full((images, 3, SIDE, SIDE), fill)
    return Sample(pixels, instruction, answer, f"data-{name}", f"id-{name}")


def packed(*samples: Sample, query_tokens: int = 2):
    return collate(samples, IdTokenizer(), query_tokens=query_tokens, image_size=SIDE)


def test_the_packed_batch_by_hand():
    """One image; no image; two frames. Two visual rows an image, held by the end token 2.

    rows   0 1 | 2  3  4  | 5  6   || 7  8  || 9 10 11 12 | 13 | 14
           vis | 11 12 13 | 21 22  || 14 15 || vis vis    | 16 | 25
    """
    first = sample(1, "11 12 13 | 31 32", "21 22", "a", 0.5)
    second = sample(0, "14 15 | 33", "", "b")
    third = sample(2, "16 | 34 35 36", "25", "c", 2.0)
    batch = packed(first, second, third)
    expected = {
        "pixels_ICHW": torch.cat([first.pixels_ICHW, third.pixels_ICHW]),
        "text_ids_L": torch.tensor([31, 32, 34, 35, 36, 34, 35, 36]),
        "cu_text_I1": torch.tensor([0, 2, 5, 8], dtype=torch.int32),
        "max_text": 3,
        "token_ids_T": torch.tensor([2, 2, 11, 12, 13, 21, 22, 14, 15, 2, 2, 2, 2, 16, 25]),
        "positions_T": torch.tensor([0, 1, 2, 3, 4, 5, 6, 0, 1, 0, 1, 2, 3, 4, 5]),
        "cu_tokens_B1": torch.tensor([0, 7, 9, 15], dtype=torch.int32),
        "max_tokens": 7,
        "visual_rows_V": torch.tensor([0, 1, 9, 10, 11, 12]),
        "answer_rows_A": torch.tensor([4, 5, 6, 8, 13, 14]),
        "answer_ids_A": torch.tensor([21, 22, 2, 2, 25, 2]),
        "answer_sample_A": torch.tensor([0, 0, 0, 1, 2, 2]),
        "cu_answers_B1": torch.tensor([0, 3, 4, 6], dtype=torch.int32),
        "max_answer": 3,
        "prompt_rows_P": torch.tensor([0, 1, 2, 3, 4, 7, 8, 9, 10, 11, 12, 13]),
        "cu_prompts_B1": torch.tensor([0, 5, 7, 12], dtype=torch.int32),
        "max_prompt": 5,
        "datasets": ("data-a", "data-b", "data-c"),
        "sample_ids": ("id-a", "id-b", "id-c"),
    }
    assert {field.name for field in fields(batch)} == set(expected)
    for name, wanted in expected.items():
        found = getattr(batch, name)
        if isinstance(wanted, torch.Tensor):
            assert torch.equal(found, wanted), name
            assert found.dtype == wanted.dtype, name
        else:
            assert found == wanted, name
    assert len(batch) == 3


def test_an_answer_row_is_the_row_before_its_token():
    batch = packed(sample(1, "11 12 | 31", "21 22 23"), sample(1, "13 | 32", "24"))
    rows = batch.answer_rows_A.tolist()
    assert rows == [3, 4, 5, 6, 9, 10]
    fed_next = [batch.token_ids_T[row + 1].item() for row in (3, 4, 5)]
    assert fed_next == batch.answer_ids_A[:3].tolist() == [21, 22, 23]


def test_without_images_one_dummy_is_carried():
    batch = packed(sample(0, "11 | 31 32", "21"), sample(0, "12 | 33", "22"))
    assert torch.equal(batch.pixels_ICHW, torch.zeros(1, 3, SIDE, SIDE))
    assert batch.text_ids_L.tolist() == [0]
    assert batch.cu_text_I1.tolist() == [0, 1]
    assert batch.max_text == 1
    assert batch.visual_rows_V.tolist() == []
    assert batch.visual_rows_V.dtype == torch.long
    assert batch.token_ids_T.tolist() == [11, 21, 12, 22]
    assert batch.answer_rows_A.tolist() == [0, 1, 2, 3]


def test_frames_keep_their_order():
    frames = torch.arange(3.0)[:, None, None, None].expand(3, 3, SIDE, SIDE)
    batch = packed(Sample(frames, "11 | 31", "21", "video", "v"), query_tokens=1)
    assert batch.pixels_ICHW[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert batch.cu_text_I1.tolist() == [0, 1, 2, 3]


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        packed()


def test_a_sample_with_nothing_before_its_answer_is_refused():
    """Its first answer token would be predicted from the sample packed before it."""
    with pytest.raises(ValueError, match="'id-b' of data-b has neither an image nor instruction"):
        packed(sample(1, "11 | 31", "21"), sample(0, "", "22", "b"))
    assert packed(sample(1, "", "22", "b")).answer_rows_A.tolist() == [1, 2]


def test_moving_keeps_everything():
    batch = packed(sample(1, "11 | 31", "21"))
    moved = batch.to("meta")
    assert moved.pixels_ICHW.device.type == "meta"
    assert moved.cu_text_I1.device.type == "meta"
    assert (moved.max_tokens, moved.datasets) == (batch.max_tokens, batch.datasets)
    assert torch.equal(batch.to("cpu").token_ids_T, batch.token_ids_T)
