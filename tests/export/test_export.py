"""`ibtrain export`, as a person calls it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ibtrain.cli import main
from tests.tiny import write_tiny_base

pytestmark = pytest.mark.usefixtures("logger_as_it_was")


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_processor) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "base", tiny_processor)


def test_as_a_process_it_prints_one_document(base, tmp_path):
    arguments = [base, "--to", "hf", "--out", tmp_path / "out", "--json"]
    command = [sys.executable, "-m", "ibtrain", "export", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    assert document["directory"] == str(tmp_path / "out")
    assert document["proof"]["max_abs_logit_error"] < 1e-4


def test_for_people(base, tmp_path, capsys):
    arguments = [str(base), "--to", "hf", "--out", str(tmp_path / "out")]
    assert main(["export", *arguments]) == 0
    assert "Opened again, the largest difference" in capsys.readouterr().out


def test_a_wrong_request(base, tmp_path, capsys):
    arguments = ["--to", "hf", "--out", str(tmp_path / "out")]
    assert main(["export", str(tmp_path / "nowhere"), *arguments]) == 2
    assert "no such directory" in capsys.readouterr().err
    assert main(["export", str(base), *arguments, "--shard-gigabytes", "0"]) == 2
    assert main(["export", str(base), *arguments, "--whole"]) == 2
    assert "--whole belongs to --to lavis" in capsys.readouterr().err
    assert main(["export", str(base), "--to", "peft", *arguments[2:]]) == 2
    assert "has no adapters to write" in capsys.readouterr().err


def test_a_job_that_fails(base, tmp_path, capsys, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ibtrain.export.huggingface.write_weights", full)
    arguments = [str(base), "--to", "hf", "--out", str(tmp_path / "out")]
    assert main(["export", *arguments]) == 1
    assert "No space left" in capsys.readouterr().err


def test_a_directory_that_cannot_be_made(base, tmp_path, capsys):
    (tmp_path / "file").touch()
    arguments = [str(base), "--to", "hf", "--out", str(tmp_path / "file/out")]
    assert main(["export", *arguments]) == 2
    assert "file is a file; give another directory" in capsys.readouterr().err
    arguments = [str(base), "--to", "hf", "--out", str(tmp_path / "out")]
    assert main(["export", *arguments, "--shard-gigabytes", "inf"]) == 2
    assert "--shard-gigabytes is inf" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_no_traceback(base, tmp_path, capsys, monkeypatch, error):
    def broken(*arguments):
        raise error

    monkeypatch.setattr("ibtrain.export.huggingface.write_weights", broken)
    arguments = [str(base), "--to", "hf", "--out", str(tmp_path / "out")]
    assert main(["export", *arguments]) == 1
    assert capsys.readouterr().err.startswith("ibtrain: ")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_export_left_is_named(base, tmp_path, capsys):
    (tmp_path / ".out.writing-abc").mkdir()
    arguments = [str(base), "--to", "hf", "--out", str(tmp_path / "out")]
    assert main(["export", *arguments]) == 0
    assert ".out.writing-abc is left of an export that was killed" in capsys.readouterr().err
