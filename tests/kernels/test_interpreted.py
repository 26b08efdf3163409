"""Runs the tests of Triton's kernels under its interpreter.

The interpreter is chosen when a kernel is defined, for the whole process: hence one of its own.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    "file", sorted(HERE.parent.rglob("interpreted_*.py")), ids=lambda file: file.stem
)
def test_interpreted(file: Path) -> None:
    command = [sys.executable, "-m", "pytest", str(file), "-p", "no:cacheprovider", "-rs"]
    done = subprocess.run(
        command,
        cwd=HERE.parents[1],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    summary = done.stdout.strip().splitlines()[-1]
    passed = re.search(r"(\d+) passed", summary)
    assert passed and int(passed.group(1)) > 0, output
    assert not re.search(r"skipped|xfailed|deselected", summary), output
