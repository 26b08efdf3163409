import json
import logging
from importlib.metadata import version
from pathlib import Path

import torch

from ibtrain import __version__
from ibtrain.distributed.ranks import Ranks
from ibtrain.run_directory import take_run
from ibtrain.training.starts import record_start

RANKS = Ranks(rank=0, world=6, local_rank=0, local_world=2)
CPU = torch.device("cpu")


def test_each_start_is_a_line(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("HF_TOKEN", "hidden-token")
    record_start(take_run(tmp_path), 0, RANKS, CPU)
    with (tmp_path / "starts.jsonl").open("a") as file:
        file.write('{"step": 5, "ti')  # killed while it wrote
    record_start(take_run(tmp_path), 40, RANKS, CPU)
    text = (tmp_path / "starts.jsonl").read_text()
    first, half, second = text.splitlines()
    assert half == '{"step": 5, "ti' and "hidden-token" not in text
    lines = [json.loads(line) for line in (first, second)]
    assert [line["step"] for line in lines] == [0, 40]
    for line in lines:
        assert line["world_size"] == 6 and line["time"].endswith("+00:00")
        assert line["versions"]["ibtrain"] == __version__
        assert line["versions"]["torch"] == version("torch")
        assert line["environment"]["device"] == "cpu"
        assert line["environment"]["processes on this host"] == 2
        assert line["environment"]["launcher"] == "torchrun"


def test_a_start_that_cannot_be_noted_fails_nothing(tmp_path: Path, caplog):
    (tmp_path / "starts.jsonl").mkdir()
    with caplog.at_level(logging.WARNING):
        record_start(take_run(tmp_path), 0, RANKS, CPU)
    assert "this start is not noted in starts.jsonl" in caplog.text
