"""Each row of `ibtrain check` from facts of machines that are well and of such that are not."""

from pathlib import Path

import pytest

from ibtrain.check import verdicts as rows
from ibtrain.check.facts import Gpu, Torch
from ibtrain.check.verdicts import GIB, Finding

H100 = Gpu("NVIDIA H100 80GB HBM3", 80 * GIB, (9, 0))
V100 = Gpu("Tesla V100-SXM2-32GB", 32 * GIB, (7, 0))
CPU_BUILD = Torch("2.13.0+cpu")
CUDA_BUILD = Torch("2.13.0", "13.0", available=True, visible=8, nccl="2.28.9")
NO_DEVICE = Torch("2.13.0", "13.0", complaint="The NVIDIA driver on your system is too old")
TORCH = "==2.13.0"


def status(finding: Finding) -> str:
    assert bool(finding.remedy) == (finding.status != "OK")
    return finding.status


def test_a_remedy_is_given_unless_all_is_well():
    with pytest.raises(AssertionError):
        Finding("disk", "WARN", "little")
    with pytest.raises(AssertionError):
        Finding("disk", "OK", "much", "nothing to do")


@pytest.mark.parametrize(
    ("version", "expected"), [((3, 11, 0), "OK"), ((3, 14, 1), "OK"), ((3, 10, 9), "MISS")]
)
def test_python(version, expected):
    assert status(rows.python(version)) == expected


@pytest.mark.parametrize(
    ("version", "wanted", "expected"),
    [
        ("2.13.0", "==2.13.0", True),
        ("2.13.0+cpu", "==2.13.0", True),
        ("2.13.1", "==2.13.0", False),
        ("4.57.6", ">=4.57,<5", True),
        ("4.100", ">=4.57,<5", True),
        ("4.56.2", ">=4.57,<5", False),
        ("5.0.0", ">=4.57,<5", False),
        ("5.0.0rc1", ">=4.57,<5", False),
        ("1.0", "", True),
    ],
)
def test_versions_are_compared_as_numbers(version, wanted, expected):
    assert rows.meets(version, wanted) is expected


def test_a_package():
    assert status(rows.package("peft", ">=0.17", "0.21.2")) == "OK"
    old = rows.package("peft", ">=0.17", "0.9.0")
    assert (status(old), old.remedy) == ("WARN", "pip install 'peft>=0.17'")
    gone = rows.package("transformers", ">=4.57,<5", None)
    assert (status(gone), gone.remedy) == ("MISS", "pip install 'transformers>=4.57,<5'")


def test_torch_and_its_build():
    assert rows.torch_package(TORCH, CPU_BUILD).found == "2.13.0+cpu (CPU build)"
    assert rows.torch_package(TORCH, CUDA_BUILD).found == "2.13.0 (CUDA 13.0 build)"
    assert status(rows.torch_package(TORCH, CUDA_BUILD)) == "OK"
    assert status(rows.torch_package(TORCH, Torch("2.9.1", "12.8"))) == "WARN"
    gone = rows.torch_package(TORCH, Torch(broken="No module named 'torch'"))
    assert (status(gone), gone.remedy) == ("MISS", "pip install torch==2.13.0")
    broken = rows.torch_package(TORCH, Torch("2.13.0", broken="libcudart.so.13: not found"))
    assert status(broken) == "MISS" and "libcudart.so.13" in broken.found


def test_torchvision():
    assert status(rows.torchvision("==0.28.0", "0.28.0", None)) == "OK"
    assert status(rows.torchvision("==0.28.0", None, None)) == "MISS"
    broken = rows.torchvision("==0.28.0", "0.27.0", "operator torchvision::nms does not exist")
    assert status(broken) == "MISS" and "torchvision::nms" in broken.found


def test_triton_is_needed_on_a_gpu():
    assert status(rows.triton(">=3.7,<3.8", "3.7.1", 0)) == "OK"
    assert rows.triton(">=3.7,<3.8", "3.9.0", 1) == Finding(
        "triton",
        "WARN",
        "3.9.0; tested with >=3.7,<3.8",
        "pip install 'triton>=3.7,<3.8'",
    )
    assert rows.triton(">=3.7,<3.8", None, 0) == Finding(
        "triton",
        "WARN",
        "not installed",
        "on a CPU only the kernels' tests need it: pip install 'triton>=3.7,<3.8'",
    )
    assert status(rows.triton("", None, 1)) == "MISS"


def test_other_packages_share_a_row():
    wanted = {"tqdm": ">=4.66", "pillow": ">=11"}
    assert status(rows.other_packages({"tqdm": "4.67", "pillow": "11.0"}, wanted)) == "OK"
    odd = rows.other_packages({"tqdm": "4.67", "pillow": "9.5"}, wanted)
    assert (status(odd), odd.remedy) == ("WARN", "pip install 'pillow>=11'")
    gone = rows.other_packages({"tqdm": None, "pillow": "9.5"}, wanted)
    assert (status(gone), gone.remedy) == ("MISS", "pip install 'tqdm>=4.66' 'pillow>=11'")
    assert "tqdm" in gone.found


def test_gpus():
    many = rows.gpus([H100] * 8, CUDA_BUILD)
    assert status(many) == "OK"
    assert many.found == "8 x NVIDIA H100 80GB HBM3, 80 GiB, capability 9.0"
    some = rows.gpus([H100] * 8, Torch("2.13.0", "13.0", available=True, visible=2))
    assert "2 of them visible" in some.found
    none = rows.gpus([], CPU_BUILD)
    assert (status(none), none.remedy) == (
        "WARN",
        "training runs on the CPU: only toy models",
    )
    old = rows.gpus([H100, V100], CUDA_BUILD)
    assert status(old) == "WARN" and "no bf16" in old.remedy
    assert old.found.count(" x ") == 2


def test_driver_cards_and_build_of_torch():
    assert status(rows.cuda(CUDA_BUILD, 8, "580.65")) == "OK"
    assert status(rows.cuda(CPU_BUILD, 0, None)) == "OK"
    assert status(rows.cuda(Torch(broken="gone"), 8, "580.65")) == "WARN"
    login_node = rows.cuda(NO_DEVICE, 0, None)
    assert status(login_node) == "WARN" and "too old" in login_node.found
    old_driver = rows.cuda(NO_DEVICE, 8, "470.1")
    assert status(old_driver) == "MISS" and "driver 470.1" in old_driver.found
    cpu_build = rows.cuda(CPU_BUILD, 8, "580.65")
    assert status(cpu_build) == "MISS"
    assert cpu_build.remedy.endswith("pip install --force-reinstall torch==2.13.0")


def test_nccl():
    assert status(rows.nccl("2.28.9", 8)) == "OK"
    assert status(rows.nccl(None, 0)) == "OK"
    assert status(rows.nccl(None, 8)) == "MISS"


def test_what_operators_are_built_with():
    assert status(rows.build_tool("ninja", "/usr/bin/ninja", ["async_io"], "get it")) == "OK"
    unneeded = rows.build_tool("ninja", None, [], "get it")
    assert status(unneeded) == "WARN" and "none of the shipped recipes" in unneeded.remedy
    needed = rows.build_tool("ninja", None, ["async_io"], "get it")
    assert status(needed) == "MISS" and "builds async_io on first use" in needed.remedy
    assert status(rows.c_compiler("/usr/bin/gcc", 1)) == "OK"
    assert status(rows.c_compiler(None, 0)) == "OK"
    assert status(rows.c_compiler(None, 1)) == "WARN"


def test_slurm():
    assert status(rows.slurm("/usr/bin/sbatch", "/usr/bin/srun", None)) == "OK"
    assert rows.slurm(None, None, "4711").found == "inside the allocation 4711"
    assert status(rows.slurm("/usr/bin/sbatch", None, None)) == "WARN"


def test_shared_memory():
    assert status(rows.shared_memory(GIB)) == "OK"
    small = rows.shared_memory(64 * 2**20)  # what docker gives
    assert status(small) == "WARN" and "--shm-size" in small.remedy
    assert status(rows.shared_memory(None)) == "WARN"


def test_open_files():
    assert status(rows.open_files(4096, 4096)) == "OK"
    assert rows.open_files(-1, -1).found == "unlimited"
    assert "ulimit -n 8192" in rows.open_files(1024, 8192).remedy
    assert "ulimit -n 65536" in rows.open_files(1024, -1).remedy
    fixed = rows.open_files(1024, 2048)
    assert status(fixed) == "WARN" and "limits.conf" in fixed.remedy


def test_locked_memory_is_looked_at_where_several_gpus_are():
    assert rows.locked_memory(65536, 1) is None
    well, little = rows.locked_memory(-1, 2), rows.locked_memory(65536, 2)
    assert well is not None and status(well) == "OK"
    assert little is not None and status(little) == "WARN" and "memlock" in little.remedy
    assert little.found == "64 KiB"


def test_host_memory_and_its_limit():
    assert status(rows.host_memory((64 * GIB, 60 * GIB), None)) == "OK"
    assert status(rows.host_memory((4 * GIB, 3 * GIB), None)) == "WARN"
    limited = rows.host_memory((64 * GIB, 60 * GIB), 2 * GIB)
    assert status(limited) == "WARN" and "limited to 2.0 GiB" in limited.found
    assert status(rows.host_memory(None, 16 * GIB)) == "OK"
    assert status(rows.host_memory(None, None)) == "WARN"


def test_disk():
    place = Path("runs")
    assert status(rows.disk("disk", place, 10 * GIB, "free some")) == "OK"
    assert rows.disk("disk", place, GIB, "free some").found == "1.0 GiB free at runs"
    assert status(rows.disk("disk", place, GIB, "free some")) == "WARN"
    assert status(rows.disk("disk", place, None, "free some")) == "WARN"


def test_the_hub_cache():
    assert status(rows.hub_cache(Path("cache"), True)) == "OK"
    assert "HF_HOME" in rows.hub_cache(Path("cache"), False).remedy
