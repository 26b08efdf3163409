import pytest
import torch

from ibtrain.kernels import allow_triton, backends, varlen_attention
from ibtrain.kernels.backends import AttentionKind, Backend, choose

GPU = torch.device("cuda")
ABSENT = "it is absent"
HALF = (torch.bfloat16, torch.float16)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU on which the named backends run, as the table sees one."""

    def present(*names: str) -> None:
        triton = "" if "triton" in names else ABSENT
        monkeypatch.setattr(backends, "why_not_on", lambda device: triton)
        monkeypatch.setattr(
            backends.libraries, "why_not", lambda name, device: "" if name in names else ABSENT
        )

    return present


def kind(width: int, *, dtype=torch.bfloat16, **switches) -> AttentionKind:
    return AttentionKind(GPU, dtype, width, **switches)


TOWER = kind(88)
LLAMA = kind(128, causal=True)
QFORMER_TRAINED = kind(64, dropout=True)
QFORMER = kind(64)
T5_ENCODER = kind(64, bias=True)
T5_DECODER = kind(64, bias=True, causal=True)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    ("present", "wanted"),
    [
        # tower, Llama, Q-Former trained and frozen, T5 encoder and decoder
        (("triton", "flash", "torch_varlen"), "flash triton triton triton triton triton"),
        (("triton", "torch_varlen"), "torch_varlen triton triton triton triton triton"),
        (("triton",), "triton triton triton triton triton triton"),
        (("flash",), "flash flash flash flash sdpa sdpa"),
        (("torch_varlen",), "torch_varlen torch_varlen sdpa torch_varlen sdpa sdpa"),
        ((), "sdpa sdpa sdpa sdpa sdpa sdpa"),
    ],
)
def test_the_choice_for_every_attention_of_the_family(gpu, dtype, present, wanted):
    gpu(*present)
    family = (TOWER, LLAMA, QFORMER_TRAINED, QFORMER, T5_ENCODER, T5_DECODER)
    kinds = [AttentionKind(GPU, dtype, *list(vars(each).values())[2:]) for each in family]
    assert [choose(each).backend for each in kinds] == wanted.split()


def test_fp32_goes_to_triton_for_libraries_have_none(gpu):
    gpu("triton", "flash", "torch_varlen")
    for width in (64, 88, 128):
        assert choose(kind(width, dtype=torch.float32)).backend is Backend.TRITON
    gpu("flash", "torch_varlen")
    choice = choose(kind(64, dtype=torch.float32))
    assert choice.backend is Backend.SDPA
    assert choice.passed_over == ((Backend.TRITON, ABSENT),)


def test_fp64_goes_to_sdpa(gpu):
    gpu("triton", "flash", "torch_varlen")
    choice = choose(kind(64, dtype=torch.float64))
    assert choice.backend is Backend.SDPA
    assert choice.passed_over == ((Backend.TRITON, "float64 is not among its types"),)


@pytest.mark.parametrize("width", [8, 32, 72, 100, 160])
def test_widths_that_the_compile_gate_has_not_seen_go_to_libraries(gpu, width):
    gpu("triton", "torch_varlen")
    multiple = width % 8 == 0
    assert choose(kind(width)).backend == ("torch_varlen" if multiple else "sdpa")
    assert choose(kind(width, bias=True)).backend is Backend.SDPA


def test_on_a_cpu_it_is_sdpa():
    on_cpu = AttentionKind(torch.device("cpu"), torch.bfloat16, 64, True, True, True)
    assert choose(on_cpu).backend is Backend.SDPA


def test_kernels_off_forbids_ours_alone(monkeypatch):
    monkeypatch.setattr(backends.libraries, "why_not", lambda name, device: "")
    allow_triton(False)
    try:
        assert choose(LLAMA).backend is Backend.FLASH
        choice = choose(T5_ENCODER)
    finally:
        allow_triton(True)
    assert choice.backend is Backend.SDPA
    assert choice.passed_over == ((Backend.TRITON, "the recipe forbids them (kernels: off)"),)


def test_the_environment_names_a_backend(gpu, monkeypatch):
    gpu("triton", "torch_varlen")
    monkeypatch.setenv("IBTRAIN_ATTENTION", "triton")
    assert choose(LLAMA).backend is Backend.TRITON
    monkeypatch.setenv("IBTRAIN_ATTENTION", "torch_varlen")
    with pytest.raises(
        ValueError, match=r"head width 64, bfloat16, bias on cuda: it takes no bias"
    ):
        choose(T5_ENCODER)
    with pytest.raises(ValueError, match="it has no dropout"):
        choose(QFORMER_TRAINED)
    monkeypatch.setenv("IBTRAIN_ATTENTION", "xformers")
    with pytest.raises(ValueError, match="is 'xformers'; the backends are triton, torch_varlen"):
        choose(LLAMA)


def test_a_head_width_that_a_named_backend_lacks_is_said(gpu, monkeypatch):
    gpu("triton")
    monkeypatch.setenv("IBTRAIN_ATTENTION", "triton")
    with pytest.raises(ValueError, match=r"multiples of 8 up to 128 wide, not 130"):
        choose(kind(130))
    with pytest.raises(ValueError, match=r"multiples of 8 up to 128 wide, not 12"):
        choose(kind(12))
    rows = torch.zeros(4, 2, 12)
    places = torch.tensor([0, 4])
    with pytest.raises(ValueError, match=r"asks for triton, .* head width 12, float32 on cpu"):
        varlen_attention(rows, rows, rows, places, places, 4, 4)


def test_cudnn_is_off():
    assert not torch.backends.cuda.cudnn_sdp_enabled()
