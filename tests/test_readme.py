"""The commands that the README names, run as it names them."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
SET_UP, BY_HAND, DATA, PLAN = (
    [line.partition(" #")[0].strip() for line in block.splitlines() if line.strip()]
    for block in BLOCKS
)
SMALL = ["--train-images", "20", "--test-images", "2"]


def run(command: list[str], directory: Path) -> str:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    }
    finished = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, f"{shlex.join(command)}\n{finished.stdout}\n{finished.stderr}"
    return finished.stdout


@pytest.mark.timeout(900)
def test_the_commands_by_hand_after_the_quickstart(tmp_path: Path) -> None:
    """The quickstart in rehearsal (every step, few images), then each command of the README."""
    screen = run([sys.executable, str(ROOT / "tools/quickstart.py"), "--rehearsal"], tmp_path)
    assert re.search(r"transformers gives the same answer to (\d+) of \1 questions", screen)
    for promised in ("tuned, unseen scenes", "images shuffled", "the base before tuning", "Next:"):
        assert promised in screen
    assert (tmp_path / "quickstart/evaluation/tuned/gqa.png").is_file()
    for command in BY_HAND:
        words = shlex.split(command)
        assert run(words, tmp_path).strip() or words[0] == "deepspeed"
    assert DATA[0] == "ibtrain data catalog"
    for command in DATA:
        words = shlex.split(command)
        printed = run(words + (SMALL if words[:3] == ["ibtrain", "data", "toy"] else []), tmp_path)
        assert printed.strip()
    assert json.loads((tmp_path / "toy/shards/textcaps/card.json").read_text())
    assert (tmp_path / "quickstart/mixture.html").stat().st_size > 1000


def test_the_plan_is_what_the_command_prints(tmp_path: Path) -> None:
    [command] = PLAN
    assert f"```text\n{run(shlex.split(command), tmp_path)}```" in README


def test_set_up_is_two_make_targets() -> None:
    assert SET_UP == ["make quickstart", "make test"]
    for command in SET_UP:
        planned = run(["make", "--dry-run", *shlex.split(command)[1:]], ROOT)
        expected = "tools/quickstart.py" if "quickstart" in command else "-m pytest"
        assert expected in planned
