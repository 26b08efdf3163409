"""Every kernel that the dispatch can launch, compiled for sm_90 without a GPU.

tools/test_environment.sh compiles them for sm_80 and sm_100.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GATE = ROOT / "tools" / "compile_gate.py"


def test_every_kernel_passes_the_gate():
    done = subprocess.run(
        [sys.executable, str(GATE), "--json", "--architecture", "90"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    compiled = json.loads(done.stdout)
    at_fault = [each for each in compiled if each["faults"]]
    assert not at_fault
    assert done.returncode == 0, done.stderr
    names = {each["name"] for each in compiled}
    assert len(compiled) == len(names)
    for name in (
        "attention_forward bf16 88",
        "attention_forward bf16 64 causal bias dropout",
        "attention_backward_query fp16 64 bias bias gradient dropout",
        "attention_backward_key fp32 128 causal dropout",
    ):
        assert name in names
    for kernel in ("rms_norm", "rope", "gated_act", "attention_delta"):
        assert any(kernel in name for name in names)
    for each in compiled:
        if each["name"].startswith("attention_") and "delta" not in each["name"]:
            multiplies = "fp32" not in each["name"]
            assert (each["tensor_core_instructions"] > 0) == multiplies
            assert each["asynchronous_copies"] > 0
        assert each["registers"] <= 255


# Compiled where the kernels are not interpreted, hence in a process of their own.
BROKEN = """
import dataclasses, os, sys
os.environ["TRITON_DUMP_PTXAS_LOG"] = os.environ["TRITON_ALWAYS_COMPILE"] = "1"
sys.path.insert(0, "tools")
from compile_gate import compile_variant, variants_by_name
good = variants_by_name()["attention_forward bf16 64"]
def broken(name="attention_forward bf16 64", options=None, **constants):
    variant = variants_by_name()[name]
    return dataclasses.replace(
        variant,
        constants=variant.constants | constants,
        options=options or variant.options,
    )
cases = {
    "good": good,
    "spills": broken(M=256, N=128, options={"num_warps": 4, "num_stages": 2}),
    "shared": broken("attention_forward bf16 128", {"num_warps": 8, "num_stages": 8}),
    "mma": broken(M=32),
    "copies": broken(options={"num_warps": 8, "num_stages": 1}),
    "fails": broken(M=100),
}
for name, variant in cases.items():
    print(name, "|", *compile_variant(variant, 90).faults)
"""


@pytest.fixture(scope="module")
def faults(tmp_path_factory) -> dict[str, str]:
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", BROKEN], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split("|", 1) for line in done.stdout.splitlines() if "|" in line]
    return {name.strip(): told.strip() for name, told in lines}


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("spills", "bytes, 128 allowed"),
        ("shared", "bytes of shared memory, there are 232448"),
        ("mma", "no wgmma.mma_async: it multiplies without tensor cores"),
        ("copies", "no cp.async: its loads are not pipelined"),
        ("fails", "does not compile"),
    ],
)
def test_the_gate_sees_what_is_wrong(faults, case, said):
    assert faults["good"] == ""
    assert said in faults[case]


def test_a_gate_without_a_kernel_is_no_gate():
    done = subprocess.run(
        [sys.executable, str(GATE), "--only", "nothing"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "no kernel's name has --only 'nothing' in it" in done.stderr
