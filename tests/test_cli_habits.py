"""What people expect of any program: completion, how much it tells, no colours, a quick start."""

import json
import logging
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from ibtrain.cli import main
from tests.data.shard_directories import record, write_card, write_shards

ROOT = Path(__file__).parents[1]


def completed(line: str, directory: Path) -> list[str]:
    """What the shell is offered at the end of a line."""
    answer = directory / "answer"
    with answer.open("wb") as file:
        environment = os.environ | {
            "_ARGCOMPLETE": "1",
            "_ARGCOMPLETE_IFS": "\n",
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
            "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
            "PYTHONPATH": str(ROOT),
        }
        program = [sys.executable, "-m", "ibtrain"]
        done = subprocess.run(program, env=environment, cwd=directory, capture_output=True)
        assert done.returncode == 0 and not done.stdout, done
        assert not file.tell()
    return [word.strip() for word in answer.read_text().split("\n") if word.strip()]


def test_verbs_options_recipes_and_datasets_are_completed(tmp_path: Path):
    (tmp_path / "toy-mine.yaml").touch()
    (tmp_path / "toy.txt").touch()
    assert {"train", "report", "data", "export"} <= set(completed("ibtrain ", tmp_path))
    assert set(completed("ibtrain data ve", tmp_path)) == {"verify"}
    assert set(completed("ibtrain report RUN --ev", tmp_path)) == {"--evaluation"}
    assert set(completed("ibtrain train toy", tmp_path)) == {"toy", "toy-base", "toy-mine.yaml"}
    datasets = {"vqav2", "vqav2_question_generation"}
    assert set(completed("ibtrain data prepare vq", tmp_path)) == datasets


def test_the_help_comes_at_once_and_loads_nothing_heavy():
    script = (
        "import sys\nfrom ibtrain.cli import main\n"
        "try: main(['report', '--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'pydantic', 'yaml', 'argcomplete', 'PIL', 'tqdm'}"
        " & set(sys.modules)))"
    )
    begun = os.times().children_user
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert os.times().children_user - begun < 1.0


def in_a_terminal(words: list[str], **environment: str) -> tuple[str, str]:
    """What a command prints on its stdout, and on a terminal that its stderr is."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    with subprocess.Popen(
        [sys.executable, "-m", "ibtrain", *words],
        env=os.environ | {"TERM": "xterm-256color"} | environment,
        stdout=subprocess.PIPE,
        stderr=theirs,
        cwd=ROOT,
    ) as process:
        os.close(theirs)
        printed = b""
        try:
            while chunk := os.read(ours, 65536):
                printed += chunk
        except OSError:
            pass  # its end is closed
        assert process.stdout is not None
        answer = process.stdout.read().decode()
    os.close(ours)
    assert process.returncode == 0, printed
    return answer, printed.decode()


def test_quiet_draws_no_bars_and_colours_are_never_used(tmp_path: Path):
    write_shards(tmp_path / "shards", [record(number) for number in range(8)])
    write_card(tmp_path / "shards")
    words = ["data", "verify", str(tmp_path / "shards")]
    answer, bars = in_a_terminal(words)
    assert "8 good records" in answer and "%|" in bars
    assert "\x1b[" not in answer + bars.replace("\x1b[A", "")
    assert in_a_terminal([*words, "--quiet"], NO_COLOR="1") == (answer, "")


@pytest.mark.usefixtures("logger_as_it_was")
def test_how_much_is_told(tmp_path: Path, capsys):
    logger = logging.getLogger("ibtrain")
    for options, level in (
        ([], logging.INFO),
        (["--quiet"], logging.WARNING),
        (["-q"], logging.WARNING),
        (["--verbose"], logging.DEBUG),
        (["-v"], logging.DEBUG),
        (["--json"], logging.WARNING),
        (["--json", "-v"], logging.DEBUG),
    ):
        assert main(["recipes", *options]) == 0
        assert logger.level == level
        out = capsys.readouterr().out
        if "--json" in options:
            json.loads(out)
    with pytest.raises(SystemExit) as ended:
        main(["recipes", "-q", "-v"])
    assert ended.value.code == 2
