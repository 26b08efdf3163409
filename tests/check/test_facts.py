"""Reading the facts, from files and programs of a made-up machine."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from ibtrain.check import facts
from ibtrain.check.facts import Gpu

TWO_CARDS = """\
NVIDIA H100 80GB HBM3, 81559, 9.0, 580.65.06
NVIDIA GB10, [N/A], 12.1, 580.65.06
"""


def test_requirements_of_a_run(tmp_path):
    file = tmp_path / "requirements.txt"
    file.write_text(
        "# pinned\ntorch==2.13.0\ntransformers>=4.57,<5  # why\naccelerate[x]>=1.0\n\nninja\n"
        "# For `make check` and `make test`\npytest>=8.3\n"
    )
    assert facts.requirements(file) == {
        "torch": "==2.13.0",
        "transformers": ">=4.57,<5",
        "accelerate": ">=1.0",
        "ninja": "",
    }


def test_requirements_of_an_installed_package(monkeypatch, tmp_path):
    lines = ["torch<2.14,>=2.11", "triton>=3.6; python_version >= '3'", "av>=18; extra == 'video'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: lines)
    assert facts.requirements(tmp_path / "absent") == {"torch": "<2.14,>=2.11", "triton": ">=3.6"}

    def unknown(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.requires", unknown)
    assert facts.requirements(tmp_path / "absent") == {}


def test_our_own_requirements_are_understood():
    wanted = facts.requirements()
    assert {"torch", "torchvision", "deepspeed", "mosaicml-streaming", "peft"} <= set(wanted)
    assert not {"pytest", "mypy"} & set(wanted)
    for clauses in wanted.values():
        assert all(part.startswith(("==", ">=", "<")) for part in clauses.split(","))


def test_the_table_of_cards():
    gpus, driver = facts.parse_gpus(TWO_CARDS)
    assert gpus == [
        Gpu("NVIDIA H100 80GB HBM3", 81559 * 2**20, (9, 0)),
        Gpu("NVIDIA GB10", 0, (12, 1)),
    ]
    assert driver == "580.65.06"
    assert facts.parse_gpus("NVIDIA-SMI has failed because\n") == ([], None)


def test_cards_are_asked_for_of_the_drivers_tool(tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncat <<END\n{TWO_CARDS}END\n")
    tool.chmod(0o755)
    assert len(facts.read_gpus(str(tool))[0]) == 2
    tool.write_text("#!/bin/sh\necho failed >&2\nexit 9\n")
    assert facts.read_gpus(str(tool)) == ([], None)
    assert facts.read_gpus(str(tmp_path / "absent")) == ([], None)


def test_torch_tells_of_itself():
    torch = facts.read_torch()
    assert torch.version == facts.installed("torch") and not torch.broken
    assert torch.available == (torch.visible > 0)
    assert facts.torchvision_error() is None
    assert facts.installed("no-such-package") is None


def test_programs(tmp_path):
    program = tmp_path / "bin/nvcc"
    program.parent.mkdir()
    program.touch(0o755)
    assert facts.on_path(None, "", "no-such-program", f"{program} -O2") == str(program)
    assert facts.on_path("no-such-program") is None
    assert facts.cuda_compiler({"CUDA_HOME": str(tmp_path)}) == str(program)
    assert facts.cuda_compiler({"CUDA_HOME": str(tmp_path / "bin")}) is None


def test_host_memory(tmp_path):
    table = tmp_path / "meminfo"
    table.write_text("MemTotal:   2048 kB\nMemFree:  1 kB\nMemAvailable:    1024 kB\n")
    assert facts.host_memory(table) == (2048 * 1024, 1024 * 1024)
    table.write_text("MemTotal:   2048 kB\n")
    assert facts.host_memory(table) is None
    assert facts.host_memory(tmp_path / "absent") is None


@pytest.mark.parametrize(
    ("membership", "limits", "expected"),
    [
        ("0::/job/step\n", {"job/step/memory.max": "max", "job/memory.max": "4096"}, 4096),
        ("0::/job\n", {"job/memory.max": "8192", "memory.max": "4096"}, 4096),
        # Inside a container: the path is the host's, the root is the container's.
        ("0::/docker/abc\n", {"memory.max": "4096"}, 4096),
        ("0::/\n", {}, None),
        ("5:cpu,memory:/job\n", {"memory/job/memory.limit_in_bytes": "4096"}, 4096),
        ("5:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("garbage\n", {"memory.max": "4096"}, None),
    ],
)
def test_the_memory_limit(tmp_path, membership, limits, expected):
    for name, limit in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(limit + "\n")
    (tmp_path / "membership").write_text(membership)
    assert facts.memory_limit(tmp_path / "membership", tmp_path) == expected


def test_no_control_groups(tmp_path):
    assert facts.memory_limit(tmp_path / "absent", tmp_path) is None


def test_space_and_places(tmp_path):
    assert facts.existing(tmp_path / "runs/mine") == tmp_path
    assert facts.free_bytes(tmp_path) and facts.total_bytes(tmp_path)
    assert facts.free_bytes(tmp_path / "absent") is None
    assert facts.total_bytes(tmp_path / "absent") is None
    assert facts.is_there(tmp_path) and not facts.is_there(tmp_path / "absent")


def test_the_hub_cache():
    assert facts.hub_cache({"HF_HUB_CACHE": "/a/hub", "HF_HOME": "/b"}) == Path("/a/hub")
    assert facts.hub_cache({"HF_HOME": "/b"}) == Path("/b/hub")
    assert facts.hub_cache({"XDG_CACHE_HOME": "/c"}) == Path("/c/huggingface/hub")
    assert facts.hub_cache({}) == Path("~/.cache/huggingface/hub").expanduser()


def test_the_hub_cache_is_the_hubs_own():
    constants = pytest.importorskip("huggingface_hub.constants")
    assert facts.hub_cache() == Path(constants.HF_HUB_CACHE)
