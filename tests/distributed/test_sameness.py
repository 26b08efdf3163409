"""What two nodes' code is compared by; tests/slurm/ has two nodes."""

import shutil
from pathlib import Path

from ibtrain.distributed.sameness import PACKAGE, code_of, difference, digest_of


def test_all_files_and_libraries_count(tmp_path: Path) -> None:
    code = code_of()
    for name in ("ibtrain/training/loop.py", "ibtrain/recipes/toy.yaml", "Python", "torch"):
        assert name in code
    assert code == code_of() and digest_of(code) == digest_of(code_of())
    copy = Path(shutil.copytree(PACKAGE, tmp_path / "elsewhere"))
    assert code_of(copy) == code  # where it lies is no matter
    (copy / "batch.py").write_text((copy / "batch.py").read_text() + "\n")
    assert digest_of(code_of(copy)) != digest_of(code)
    assert difference(code, code_of(copy)) == "ibtrain/batch.py differs"
    (copy / "batch.py").unlink()
    assert difference(code, code_of(copy)) == "ibtrain/batch.py differs"


def test_another_version_is_told_before_a_file() -> None:
    first = {"ibtrain/a.py": "1", "torch": "2.13.0"}
    assert difference(first, first) == ""
    second = {"ibtrain/a.py": "2", "torch": "2.12.0"}
    assert difference(first, second) == "torch is 2.13.0 and 2.12.0"
