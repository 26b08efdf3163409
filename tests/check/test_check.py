"""`ibtrain check` as a whole: the rows of a recipe, the table, the document and the exit codes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ibtrain.check import check, facts
from ibtrain.check import check as check_module
from ibtrain.check.check import Finding, attention_finding, attention_findings
from ibtrain.check.facts import Torch
from ibtrain.cli import main
from ibtrain.config import Recipe, load_recipe, shipped_recipes
from ibtrain.kernels.backends import AttentionKind, Backend, Choice
from tests.tiny import write_tiny_base

RECIPE = """\
name: tiny
root: {root}
output: ${{root}}/run
sharding: zero1
model: {{base: "${{root}}/base"}}
data:
  mixture:
    - {{dataset: vqav2, path: "${{root}}/shards/vqav2"}}
    - {{dataset: okvqa, path: "s3://bucket/okvqa"}}
  image_size: 16
  max_instruction_tokens: 64
training: {{steps: 4, global_batch: 8, micro_batch: 4}}
"""
NVME = {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}

pytestmark = pytest.mark.usefixtures("logger_as_it_was")


@pytest.fixture
def recipe_file(tmp_path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(RECIPE.format(root=tmp_path))
    return file


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory, tiny_processor) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "base", tiny_processor)


@pytest.fixture
def complete(tmp_path, recipe_file, tiny_base) -> Path:
    """The recipe's file; all that it names is there."""
    shutil.copytree(tiny_base, tmp_path / "base")
    (tmp_path / "shards/vqav2").mkdir(parents=True)
    (tmp_path / "shards/vqav2/index.json").write_text("{}")
    return recipe_file


def statuses(recipe: Recipe) -> dict[str, str]:
    return {finding.name: finding.status for finding in check.recipe_findings(recipe)}


def test_the_document_of_the_command(complete):
    command = [sys.executable, "-m", "ibtrain", "check", str(complete), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True)
    document = json.loads(ended.stdout)
    assert set(document) == {"findings", "ok"}
    for row in document["findings"]:
        assert list(row) == ["name", "status", "found", "remedy"]
        assert row["status"] in ("OK", "WARN", "MISS")
        assert bool(row["remedy"]) == (row["status"] != "OK")
    missing = [row["name"] for row in document["findings"] if row["status"] == "MISS"]
    assert document["ok"] == (not missing) and ended.returncode == bool(missing)
    names = [row["name"] for row in document["findings"]]
    assert len(set(names)) == len(names)
    assert {"python", "torch", "GPUs", "ninja", "Slurm", "open files", "shards"} <= set(names)


def test_where_torch_is_damaged(tmp_path, recipe_file):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: not found')")
    root = str(Path(check.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    command = [sys.executable, "-m", "ibtrain", "check", str(recipe_file), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 1, ended.stderr
    rows = {row["name"]: row for row in json.loads(ended.stdout)["findings"]}
    assert rows["torch"]["status"] == rows["model.base"]["status"] == "MISS"
    assert "libcudart.so.13" in rows["torch"]["found"]
    assert rows["shards"]["remedy"] == "install torch first"


@pytest.mark.parametrize(("status", "code"), [("OK", 0), ("WARN", 0), ("MISS", 1)])
def test_exit_codes(monkeypatch, capsys, status, code):
    finding = Finding("disk", status, "little", "" if status == "OK" else "free some")
    monkeypatch.setattr(check_module, "check", lambda recipe: [finding])
    assert main(["check"]) == code
    assert capsys.readouterr().out.startswith(status)
    assert main(["check", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["ok"] is (code == 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["toi"], "did you mean 'toy'?"),
        (["toy", "data.balanc=uniform"], "did you mean 'balance'?"),
        (["toy", "output"], "not of the form key=value"),
    ],
)
def test_a_bad_recipe(capsys, arguments, said):
    assert main(["check", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and said in printed.err


def test_a_recipe_that_has_all_it_names(complete):
    found = statuses(load_recipe(str(complete)))
    assert set(found) == {"sharding", "root", "model.base", "base", "shards", "run directory"}
    assert "MISS" not in found.values()


def test_a_recipe_that_lacks_everything(tmp_path, recipe_file):
    absent = tmp_path / "absent"
    recipe = load_recipe(str(recipe_file), [f"root={absent}", "sharding=zero9"])
    findings = {finding.name: finding for finding in check.recipe_findings(recipe)}
    missing = {name for name, finding in findings.items() if finding.status == "MISS"}
    assert missing == {"sharding", "root", "model.base", "shards"}
    assert "zero1" in findings["sharding"].remedy
    assert "1 of 2 datasets, 1 of them in an object store" in findings["shards"].found
    prepare = f"ibtrain data prepare vqav2 --raw DIR --out {absent}/shards/vqav2"
    assert prepare in findings["shards"].remedy


def test_a_base_in_parts_has_a_row_for_each(tmp_path):
    recipe = load_recipe("vicuna13b", [f"root={tmp_path}"])
    bert = tmp_path / "weights/bert-base-uncased"
    bert.mkdir(parents=True)
    rows = {finding.name: finding.status for finding in check.base_findings(recipe.model)}
    parts = ("language", "bert", "vision", "stage1")
    assert list(rows) == [f"model.parts.{name}" for name in parts]
    assert [rows[f"model.parts.{name}"] for name in parts] == ["MISS", "OK", "MISS", "MISS"]


def test_a_random_base_needs_a_processor(tmp_path):
    recipe = load_recipe("toy-base", [f"root={tmp_path}"])
    (row,) = check.base_findings(recipe.model)
    assert row.status == "MISS" and "ibtrain data toy DIR" in row.remedy
    (tmp_path / "raw/processor").mkdir(parents=True)
    (row,) = check.base_findings(recipe.model)
    assert row.status == "OK"


@pytest.mark.parametrize(("download", "expected"), [("false", "MISS"), ("true", "WARN")])
def test_a_base_by_its_name_on_the_hub(recipe_file, download, expected):
    overrides = ["model.base=no-such-owner/no-such-model", f"model.allow_download={download}"]
    (row,) = check.base_findings(load_recipe(str(recipe_file), overrides).model)
    assert row.status == expected
    assert "no-such-owner/no-such-model" in row.found


@pytest.mark.parametrize("name", shipped_recipes())
def test_the_shipped_recipes_build_no_operator(name):
    assert check.operators_of(check.read_sharding(load_recipe(name).sharding)) == []


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, []),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, []),
        (NVME, ["async_io"]),
        ({"zero_optimization": {"zero_quantized_weights": True}}, ["quantizer"]),
        ({"zero_optimization": {"zero_quantized_weights": False}}, []),
    ],
)
def test_what_a_sharding_makes_deepspeed_build(config, expected):
    assert check.operators_of(config) == expected


def test_a_sharding_file_of_your_own(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(NVME))
    assert check.sharding_finding(str(file)).found.endswith("(DeepSpeed builds async_io)")
    for content in ("{", "[]"):
        file.write_text(content)
        row = check.sharding_finding(str(file))
        assert row.status == "MISS" and "JSON" in row.remedy


def test_operators_need_the_tools(monkeypatch):
    monkeypatch.setenv("PATH", "")
    for variable in ("CC", "CXX", "CUDA_HOME"):
        monkeypatch.setenv(variable, "/no/such/program")
    rows = {finding.name: finding for finding in check.tool_findings(["async_io"], 1)}
    assert rows["C++ compiler"].status == rows["ninja"].status == "MISS"
    assert rows["CUDA toolkit"].status == "MISS" and rows["C compiler"].status == "WARN"
    rows = {finding.name: finding for finding in check.tool_findings([], 0)}
    assert rows["C++ compiler"].status == rows["ninja"].status == "WARN"
    assert rows["CUDA toolkit"].status == rows["C compiler"].status == "OK"


def test_packages_without_a_torch(monkeypatch, tmp_path):
    monkeypatch.setattr(facts, "requirements", lambda file: {})
    broken = Torch(broken="No module named 'torch'")
    findings = list(check.package_findings(broken, 0, tmp_path / "no requirements"))
    assert findings[1].name == "torch" and findings[1].remedy == "pip install torch"
    assert [finding.name for finding in findings][3:] == [*check.NAMED_PACKAGES, "triton"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_run_directory_that_cannot_be_made(tmp_path):
    tmp_path.chmod(0o500)
    row = check.writable_finding("run directory", tmp_path / "run", "output", "free some")
    assert row.status == "MISS" and "output=DIR" in row.remedy


def test_a_run_directory_below_a_file(tmp_path):
    (tmp_path / "file").touch()
    row = check.writable_finding("run directory", tmp_path / "file/run", "output", "free some")
    assert row.status == "MISS" and "output=DIR" in row.remedy


def test_the_table_is_aligned_and_wrapped():
    long = "free some, or name another directory " * 4
    findings = [Finding("disk", "OK", "much"), Finding("run directory", "WARN", long, long)]
    lines = check.table(findings, 60).splitlines()
    assert lines[0] == "OK    disk           much"
    assert lines[1].startswith("WARN  run directory  free some")
    assert all(len(line) <= 60 for line in lines)
    assert sum(line.startswith(" " * 6 + "free some") for line in lines) == 1
    assert lines[-1] == "1 OK, 1 WARN, 0 MISS"


def kind(**switches) -> AttentionKind:
    return AttentionKind(torch.device("cuda"), torch.bfloat16, 64, **switches)


def test_an_attention_shows_its_backend_and_why():
    chosen = Choice(Backend.TRITON, "no library takes a bias by distance")
    assert attention_finding("T5 encoder", kind(bias=True), chosen) == Finding(
        "attention: T5 encoder",
        "OK",
        "triton for head width 64, bfloat16, bias: no library takes a bias by distance",
    )


def test_a_padded_attention_on_a_gpu_is_warned_of_with_what_was_passed_over():
    passed_over = ((Backend.TRITON, "triton is not installed"),)
    finding = attention_finding("T5", kind(bias=True), Choice(Backend.SDPA, "why", passed_over))
    assert finding.status == "WARN"
    assert finding.remedy == (
        "it is padded and masked: slower. Better ones: triton: triton is not installed"
    )


def test_the_attentions_of_a_recipe_and_of_the_published_sizes():
    published = [finding.name for finding in attention_findings(None)]
    assert published == [
        f"attention: {name}"
        for name in (
            *("vision tower", "Q-Former self", "Q-Former cross"),
            *("Llama", "T5 encoder", "T5 decoder", "T5 cross"),
        )
    ]
    recipe = load_recipe("toy-base", ["kernels=off"])
    rows = {finding.name: finding for finding in attention_findings(recipe)}
    assert "float32" in rows["attention: vision tower"].found
    assert all(row.status == "OK" for row in rows.values())
