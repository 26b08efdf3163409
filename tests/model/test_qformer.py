import pytest
import torch

from ibtrain.model.qformer import QFormer, RowLayout
from tests.tiny import tiny_config, tiny_model


def test_the_layout_by_hand():
    """Two queries each; instructions of 3, 0 and 1 tokens after the six query rows."""
    layout = RowLayout.of(3, 2, torch.tensor([0, 3, 3, 4], dtype=torch.int32), 3, 4)
    assert layout.interleave_R.tolist() == [0, 1, 6, 7, 8, 2, 3, 4, 5, 9]
    assert layout.restore_R.tolist() == [0, 1, 5, 6, 7, 8, 2, 3, 4, 9]
    assert layout.text_positions_L.tolist() == [0, 1, 2, 0]
    assert layout.cu_rows.tolist() == [0, 5, 7, 10]
    assert layout.cu_queries.tolist() == [0, 2, 4, 6]
    assert layout.cu_rows.dtype == layout.cu_queries.dtype == torch.int32
    assert (layout.max_rows, layout.query_rows, layout.queries) == (5, 6, 2)


def test_restoring_undoes_interleaving():
    layout = RowLayout.of(4, 3, torch.tensor([0, 2, 2, 7, 8], dtype=torch.int32), 5, 8)
    rows = torch.arange(4 * 3 + 8)
    assert torch.equal(rows[layout.interleave_R][layout.restore_R], rows)


def test_cross_attention_stands_in_even_layers():
    model = QFormer(tiny_config(qformer_layers=4).qformer_config)
    assert [layer.has_cross_attention for layer in model.encoder.layer] == [
        True,
        False,
        True,
        False,
    ]


def test_without_instructions_there_are_no_text_weights():
    model = QFormer(tiny_config().qformer_config, instruction_aware=False)
    absent = set(dict(QFormer(tiny_config().qformer_config).named_parameters()))
    absent -= set(dict(model.named_parameters()))
    kinds = {name.split(".", 3)[-1] if "layer." in name else name for name in absent}
    assert kinds == {
        "embeddings.word_embeddings.weight",
        "embeddings.position_embeddings.weight",
        "intermediate.dense.weight",
        "intermediate.dense.bias",
        "output.dense.weight",
        "output.dense.bias",
        "output.LayerNorm.weight",
        "output.LayerNorm.bias",
    }


def test_an_instruction_beyond_the_position_embeddings_is_refused():
    model = tiny_model(tiny_config()).qformer
    text = torch.ones(65, dtype=torch.long)
    cu_text = torch.tensor([0, 65], dtype=torch.int32)
    image = torch.zeros(1, 5, 24)
    queries = torch.zeros(3, 20)
    with pytest.raises(
        ValueError, match="has 65 Q-Former tokens, the position embeddings reach 64"
    ):
        model(queries, image, text, cu_text, 65)
    cu_text[1] = 64
    assert model(queries, image, text[:64], cu_text, 64).shape == (1, 3, 20)
