import json
from pathlib import Path

import pytest
import torch

from ibtrain.export import export, proof
from ibtrain.export.lavis import write_torch_file
from ibtrain.pretrained.finding import TRIMMED, find_model
from ibtrain.pretrained.opening import open_model
from tests.pretrained.released import lavis_state_dict, trimmed
from tests.tiny import write_tiny_base
from tests.tiny_run import write_tiny_run


@pytest.fixture(scope="module", params=["llama", "t5"])
def base(request, tmp_path_factory, tiny_processor) -> Path:
    directory = tmp_path_factory.mktemp("base") / "base"
    return write_tiny_base(directory, tiny_processor, language=request.param)


def read(directory: Path) -> dict[str, torch.Tensor]:
    return torch.load(directory / TRIMMED, weights_only=True)["model"]


def test_a_run_becomes_what_lavis_loads(base, tmp_path):
    write_tiny_run(tmp_path / "run", base=base)
    report = export(tmp_path / "run", tmp_path / "out", "lavis")
    expected = trimmed(lavis_state_dict(open_model(tmp_path / "run").model))
    found = read(report.directory)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    said = json.loads((report.directory / "export_report.json").read_text())
    assert (said["format"], said["step"], said["proof"]["tensors"] > 10) == ("lavis", 3, True)
    assert said["parameters"] == sum(tensor.numel() for tensor in found.values())
    again = find_model(report.directory)
    image = proof._drawn_picture()
    ours = proof._our_logits(find_model(tmp_path / "run"), image)
    assert torch.equal(proof._our_logits(again, image), ours)


def test_the_whole_model(base, tmp_path):
    export(base, tmp_path / "out", "lavis", whole=True)
    expected = lavis_state_dict(open_model(base).model)
    found = read(tmp_path / "out")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_adapters_are_merged(base, tmp_path):
    write_tiny_run(tmp_path / "run", base=base, train_parts={"language": "lora"})
    export(tmp_path / "run", tmp_path / "out", "lavis")
    expected = lavis_state_dict(open_model(tmp_path / "run").model)
    found = read(tmp_path / "out")
    adapted = [name for name in found if name.startswith(("llm_model", "t5_model"))]
    assert adapted
    assert set(found) == set(trimmed(expected)) | set(adapted)
    for name in found:
        assert torch.equal(found[name], expected[name]), name


def test_a_file_is_written_tensor_by_tensor(tmp_path):
    tensors = {
        "a": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "b": torch.arange(5.0)[1:],
        "c": torch.zeros(0),
        "d": torch.ones(()),
        "e": torch.arange(12.0).reshape(3, 4).t(),
    }
    counted = write_torch_file(lambda: iter(tensors.items()), tmp_path / "file.pth")
    assert counted == {"parameters": 23, "bytes": 12 + 16 + 4 + 48}
    for mapped in (False, True):
        back = torch.load(tmp_path / "file.pth", weights_only=True, mmap=mapped)["model"]
        assert back.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(back[name], tensor), name
            assert back[name].dtype == tensor.dtype


def test_an_export_that_lost_its_weights_is_refused(base, tmp_path):
    write_tiny_run(tmp_path / "run", base=base)
    out = export(tmp_path / "run", tmp_path / "out", "lavis").directory
    (out / TRIMMED).unlink()
    with pytest.raises(ValueError, match=rf"lacks {TRIMMED}, in which trained weights lie"):
        find_model(out)


def test_a_full_disk_is_said_to_be_one(base, tmp_path, monkeypatch):
    def full(*arguments):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr("torch.save", full)
    with pytest.raises(OSError, match=r"trimmed\.pth cannot be written .*is the disk full\?"):
        export(base, tmp_path / "out", "lavis")
    assert not list(tmp_path.iterdir())
