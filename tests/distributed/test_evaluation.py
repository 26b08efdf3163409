"""All 13 benchmarks of the toy in official layouts by one command: alone, on two ranks, killed."""

import json
from pathlib import Path
from typing import Any

import pytest

from ibtrain.data import catalog
from ibtrain.data.preparation.prepare import prepare
from ibtrain.data.toy import PLACES, write_toy
from tests.tiny import write_tiny_base

HELD_OUT = [entry.name for entry in catalog.entries() if entry.role != "held_in"]
RESULTS = [
    *("flickr30k", "gqa", "hateful_memes", "iconqa", "ivqa", "msrvtt_qa-ranked"),
    *("msrvtt_qa-generated", "msvd_qa-ranked", "msvd_qa-generated", "nocaps", "scienceqa"),
    *("textvqa", "visdial", "vizwiz", "vsr"),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("benchmarks")
    write_toy(root / "raw", train_images=3, test_images=4)
    for name in HELD_OUT:
        folder, splits = PLACES[name]
        prepare(name, root / "raw" / folder, root / "data" / name, split=splits[0], progress=False)
    answers = ["red", "blue", "a square", "2", "yes", "no"]
    (root / "answers.txt").write_text("\n".join(answers))
    write_tiny_base(root / "base", root / "raw/processor", qformer_positions=130)
    return root


def command(root: Path, out: str) -> list[str]:
    answers = root / "answers.txt"
    vocabulary = [f"--vocabulary={name}={answers}" for name in ("msvd_qa", "msrvtt_qa")]
    given = ["evaluate", root / "base", "--data", root / "data", "--out", root / out]
    return [*map(str, given), *vocabulary, "--batch-size", "3"]


def written(root: Path, out: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    lines = (root / out / "predictions.jsonl").read_text().splitlines()
    return json.loads((root / out / "results.json").read_text()), [json.loads(one) for one in lines]


def test_ranks_and_interruptions_change_no_figure(zygote, prepared):
    alone = zygote.start_ibtrain(1, *command(prepared, "alone"))
    assert alone.wait(600) == [0], alone.output()
    document, rows = written(prepared, "alone")
    assert sorted(document["benchmarks"]) == sorted(RESULTS)
    assert all(row["value"] is not None for row in document["benchmarks"].values())
    counts = {name: row["n"] for name, row in document["benchmarks"].items()}
    assert counts["visdial"] == 10 * counts["nocaps"]

    killed = zygote.start_ibtrain(2, *command(prepared, "two"))
    answers = prepared / "two/answers"
    killed.wait_until(lambda: any(answers.glob("scienceqa-*/answers.1.*.jsonl")), 300)
    killed.kill()
    killed.wait()
    assert not (prepared / "two/results.json").exists()
    again = zygote.start_ibtrain(2, *command(prepared, "two"))
    assert again.wait(600) == [0, 0], again.output()
    assert written(prepared, "two") == (document, rows)
    # The second attempt has answered what was left, and nothing twice.
    (folder,) = answers.glob("gqa-*")
    assert {path.name.split(".")[1] for path in folder.glob("answers.*")} == {"1"}
    (folder,) = answers.glob("vsr-*")
    numbers = [
        (json.loads(line)["index"], path.name)
        for path in folder.glob("answers.*")
        for line in path.read_text().splitlines()
    ]
    assert sorted(index for index, _ in numbers) == list(range(counts["vsr"]))
    assert len({name for _, name in numbers}) == min(2, -(-counts["vsr"] // 3))
