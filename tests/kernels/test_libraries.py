"""How the libraries are called, by stand-ins with their signatures: none of them runs on a CPU."""

import pytest
import torch

from ibtrain.kernels import libraries, varlen_attention
from ibtrain.kernels.packed import Packed
from ibtrain.kernels.sdpa import padded_attention


def attend(query, key, value, cu_query, cu_key, max_query, max_key, causal, scale):
    return padded_attention(
        Packed(query, key, value, cu_query, cu_key, max_query, max_key),
        causal=causal,
        scale=query.shape[-1] ** -0.5 if scale is None else scale,
        rel_bias=None,
        dropout_p=0.0,
    )


def torch_2_13(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None,
               window_size=(-1, -1), enable_gqa=False):  # fmt: skip
    assert enable_gqa == (query.shape[1] != key.shape[1])
    assert window_size in ((-1, -1), (-1, 0))
    causal = window_size == (-1, 0)
    return attend(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, causal, scale)


def torch_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, scale=None):
    assert query.shape[1] == key.shape[1]
    return attend(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal, scale)


def torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):
    assert query.shape[1] == key.shape[1]
    return attend(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal, None)


def flash_attn(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0,
               softmax_scale=None, causal=False):  # fmt: skip
    assert dropout_p == 0.0
    return attend(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, softmax_scale
    )


@pytest.mark.parametrize("library", [torch_2_13, torch_2_11, torch_2_10, flash_attn])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_each_version_is_called_as_it_wants(monkeypatch, library, key_heads, causal, scale):
    torch.manual_seed(0)
    monkeypatch.setattr(libraries, "_found", lambda name: (library, ""))
    query, key, value = (torch.randn(9, heads, 8) for heads in (4, key_heads, key_heads))
    rows = torch.tensor([0, 4, 9], dtype=torch.int32)
    call = libraries.flash if library is flash_attn else libraries.torch_varlen
    options = {"dropout_p": 0.0} if library is flash_attn else {}
    wanted = varlen_attention(query, key, value, rows, rows, 5, 5, causal=causal, scale=scale)
    scale = 8**-0.5 if scale is None else scale
    packed = Packed(query, key, value, rows, rows, 5, 5)
    got = call(packed, causal=causal, scale=scale, **options)
    torch.testing.assert_close(got, wanted)


def test_what_is_not_there_is_said_and_nothing_is_raised():
    reason = libraries.why_not("flash", torch.device("cuda"))
    assert reason.startswith("flash_attn cannot be imported (")
    assert libraries.why_not("torch_varlen", torch.device("cpu")) == "it does not run on cpu"
