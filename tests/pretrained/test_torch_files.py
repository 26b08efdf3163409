"""Files that torch.save wrote come from elsewhere: nothing in them runs, nothing else is read."""

import os
import pickle
import zipfile

import pytest
import torch

from ibtrain.pretrained.torch_files import TorchSource, read_state_dict


class Hostile:
    """Unpickling this would make a file."""

    def __init__(self, made):
        self.made = made

    def __reduce__(self):
        return os.system, (f"touch {self.made}",)


def compressed(file):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 100_000)


@pytest.mark.parametrize("writer", [torch.save, lambda o, f: f.write_bytes(pickle.dumps(o, 2))])
def test_a_hostile_pickle_does_not_run(tmp_path, writer):
    writer({"a": Hostile(tmp_path / "made")}, tmp_path / "hostile.pth")
    with pytest.raises(ValueError, match=r"hostile\.pth is refused: it"):
        read_state_dict(tmp_path / "hostile.pth")
    assert not (tmp_path / "made").exists()


def test_what_it_holds_is_named(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(ValueError, match=r"more than tensors \(torch\.nn\.modules\.linear\.Linear"):
        read_state_dict(tmp_path / "module.pth")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "holds a list, not a state dict"),
        ({"a": 3}, "'a' is a int, not a tensor"),
        ({3: torch.ones(1)}, "is not a state dict: '3' is a int, not a tensor's name"),
        ({}, "holds an empty state dict"),
        ({"model": {}}, "holds an empty state dict"),
        ({"a": torch.eye(3).to_sparse()}, "'a' is not a plain tensor"),
        ({"a": torch.ones(1).expand(9, 9)}, "'a' is not a plain tensor"),
    ],
)
def test_what_is_no_state_dict(tmp_path, content, said):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=said):
        read_state_dict(tmp_path / "file.pth")


def test_files_of_something_else(tmp_path):
    file = tmp_path / "file.pth"
    with pytest.raises(ValueError, match="is missing"):
        read_state_dict(file)
    for content in (b"", b"\0" * 100, b"<html>not found</html>"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="is not a whole file of tensors"):
            read_state_dict(file)
    compressed(file)
    with pytest.raises(ValueError, match="is compressed"):
        read_state_dict(file)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file(tmp_path, kept):
    torch.save({"a": torch.ones(1000)}, tmp_path / "file.pth")
    data = (tmp_path / "file.pth").read_bytes()
    (tmp_path / "file.pth").write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ValueError, match=r"file\.pth is refused"):
        read_state_dict(tmp_path / "file.pth")


def test_no_flipped_byte_raises_anything_but_a_sentence(tmp_path):
    torch.save({"a": torch.ones(3), "b": torch.ones(2, 2)}, tmp_path / "file.pth")
    data = (tmp_path / "file.pth").read_bytes()
    for place in range(0, len(data), 7):
        flipped = bytearray(data)
        flipped[place] ^= 0xFF
        (tmp_path / "file.pth").write_bytes(flipped)
        try:
            read_state_dict(tmp_path / "file.pth")
        except ValueError as error:
            assert "file.pth" in str(error)


def test_weights_are_floating_point(tmp_path):
    torch.save({"a": torch.ones(2, dtype=torch.int8)}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"a is int8, and weights are"):
        TorchSource([tmp_path / "file.pth"], "file")
    torch.save({"position_ids": torch.arange(2), "a": torch.ones(1)}, tmp_path / "file.pth")
    assert TorchSource([tmp_path / "file.pth"], "file").shapes()["a"] == (1,)


def test_what_lavis_saves_beside_the_weights_is_left_alone(tmp_path):
    saved = {"model": {"a": torch.ones(3)}, "epoch": 4, "optimizer": {"state": {}}}
    torch.save(saved, tmp_path / "file.pth")
    assert torch.equal(read_state_dict(tmp_path / "file.pth")["a"], torch.ones(3))


def test_a_shard_of_another_dtype_is_named(tmp_path):
    torch.save({"layers.0.w": torch.ones(2), "layers.1.w": torch.ones(2)}, tmp_path / "0.bin")
    torch.save({"layers.2.w": torch.ones(2, dtype=torch.float16)}, tmp_path / "1.bin")
    with pytest.raises(ValueError, match=r"1\.bin: layers\.2\.w is F16, .* is F32"):
        TorchSource([tmp_path / "0.bin", tmp_path / "1.bin"], "base")
    torch.save({"a": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match="a is float8_e4m3fn, and weights are"):
        TorchSource([tmp_path / "file.pth"], "base")


def test_a_tensor_in_two_files_is_refused(tmp_path):
    for number in range(2):
        torch.save({"a": torch.full((2,), float(number))}, tmp_path / f"{number}.bin")
    with pytest.raises(ValueError, match=r"0\.bin and .*1\.bin both hold a;"):
        TorchSource([tmp_path / "0.bin", tmp_path / "1.bin"], "base")


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="is a directory, not a file"):
        read_state_dict(tmp_path)
