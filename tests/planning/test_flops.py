import torch

from ibtrain.planning.flops import attention_flops, flops_of


def test_attention_by_hand():
    """Two sequences of 3 queries and 5 keys, 4 heads of width 8."""
    query_THK = torch.empty(6, 4, 8)
    # scores and output: 2 products, of 2 * 3 * 5 pairs, 8 multiplications and additions each
    assert attention_flops(query_THK, 5, False, 2) == 2 * 2 * (2 * 3 * 5) * 8 * 4 == 3840
    assert attention_flops(query_THK, 5, False, 5) == 9600


def test_a_causal_mask_leaves_half():
    """Of 3 queries and 3 keys the pairs 1 + 2 + 3, in each of two sequences."""
    assert attention_flops(torch.empty(6, 4, 8), 3, True, 2) == 2 * 2 * (2 * 6) * 8 * 4


def test_torchs_own_formulas_count_the_rest():
    left, right = torch.empty(3, 5), torch.empty(5, 7)
    mm = torch.ops.aten.mm.default
    assert flops_of(mm, (left, right), {}, left @ right) == 2 * 3 * 5 * 7
    relu = torch.ops.aten.relu.default
    assert flops_of(relu, (left,), {}, left.relu()) == 0
