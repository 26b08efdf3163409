"""What training starts from, opened: what `ibtrain train` refuses, `ibtrain check` reports."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file

from ibtrain.check.check import Finding, opened_finding
from ibtrain.cli import main
from ibtrain.config import load_recipe
from ibtrain.distributed.ranks import Ranks
from ibtrain.pretrained.starting import open_start
from ibtrain.pretrained.tensors import INDEX_NAME, SINGLE_NAME
from tests.tiny import weights_of, write_tiny_base

RECIPE = """\
name: tiny
root: {root}
output: ${{root}}/run
sharding: zero1
model: {{base: "${{root}}/base"}}
data:
  mixture: [{{dataset: vqav2, path: "${{root}}/shards/vqav2"}}]
  image_size: 16
  max_instruction_tokens: 64
training: {{steps: 4, global_batch: 8, micro_batch: 4}}
"""


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory, tiny_processor) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "base", tiny_processor)


@pytest.fixture
def complete(tmp_path, tiny_base) -> Path:
    """A recipe's file; its base is there."""
    shutil.copytree(tiny_base, tmp_path / "base")
    file = tmp_path / "tiny.yaml"
    file.write_text(RECIPE.format(root=tmp_path))
    return file


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4976698672\n"
LFS = "is a pointer of Git LFS (135 bytes), not the file that it stands for; run `git lfs pull`"


def pointer(*names: str):
    """Damage: Git LFS's pointers in the place of files."""

    def damage(base: Path) -> None:
        for name in names:
            (base / name).write_text(POINTER)

    return damage


def sharded_pointers(base: Path) -> None:
    """As `git clone` without LFS leaves a model in shards: the index is there, no shard is."""
    names = list(weights_of(base / SINGLE_NAME))
    (base / SINGLE_NAME).unlink()
    shard = "model-00001-of-00001.safetensors"
    (base / shard).write_text(POINTER)
    (base / INDEX_NAME).write_text(json.dumps({"weight_map": dict.fromkeys(names, shard)}))


def only_a_bin(base: Path) -> None:
    (base / SINGLE_NAME).unlink()
    pointer("pytorch_model.bin")(base)


def cut(name: str, kept: int):
    """Damage: the end of a file is missing."""
    return lambda base: (base / name).write_bytes((base / name).read_bytes()[:kept])


def weights_with(change):
    """Damage: other tensors."""

    def damage(base: Path) -> None:
        weights = weights_of(base / SINGLE_NAME)
        change(weights)
        save_file(weights, base / SINGLE_NAME, metadata={"format": "pt"})

    return damage


def config_with(section: str, **values):
    """Damage: another config.json."""

    def damage(base: Path) -> None:
        config = json.loads((base / "config.json").read_text())
        config[section] |= values
        (base / "config.json").write_text(json.dumps(config))

    return damage


HEAD = "language_model.lm_head.weight"


@pytest.mark.parametrize(
    ("damage", "overrides", "said"),
    [
        (pointer(SINGLE_NAME), [], f"base/model.safetensors {LFS}"),
        (sharded_pointers, [], f"base/model-00001-of-00001.safetensors {LFS}"),
        (only_a_bin, [], f"base/pytorch_model.bin {LFS}"),
        (pointer("tokenizer.json"), [], f"base/tokenizer.json {LFS}"),
        (pointer("tokenizer.model"), [], f"base/tokenizer.model {LFS}"),
        (pointer("qformer_tokenizer/vocab.txt"), [], f"base/qformer_tokenizer/vocab.txt {LFS}"),
        (pointer("config.json"), [], f"base/config.json {LFS}"),
        (cut(SINGLE_NAME, 40), [], "base/model.safetensors is not a whole safetensors file ("),
        (cut(SINGLE_NAME, -9), [], "base/model.safetensors is not a whole safetensors file ("),
        (cut(SINGLE_NAME, 0), [], "base/model.safetensors is not a whole safetensors file ("),
        (
            cut("tokenizer.json", 300),
            [],
            "base has no tokenizer that can be opened ({base}/tokenizer.json is not JSON (",
        ),
        (
            lambda base: (base / "qformer_tokenizer/tokenizer_config.json").unlink(),
            [],
            "base has no tokenizer at {base}/qformer_tokenizer/tokenizer_config.json: a base "
            "directory holds the language tokenizer beside config.json and the Q-Former's in "
            "qformer_tokenizer/",
        ),
        (
            weights_with(lambda weights: weights.update({HEAD: weights[HEAD][:, :31].clone()})),
            [],
            f"base {{base}}: {HEAD} is [{{rows}}, 31], the configuration wants [{{rows}}, 32]; "
            "weights and config.json do not belong together",
        ),
        (
            weights_with(lambda weights: weights.pop("query_tokens")),
            [],
            "1 parameters are in none of the given weights (base {base}) and would stay random, "
            "the first is 'query_tokens': ",
        ),
        (
            config_with("text_config", vocab_size=40),
            [],
            "{base}: the language tokenizer has {rows} tokens and the language embeddings 40 rows, "
            "so some tokens have no embedding; take the tokenizer this base was saved with, or "
            "resize the embeddings and save the base again",
        ),
        (
            lambda base: None,
            ["data.max_instruction_tokens=65"],
            "data.max_instruction_tokens is 65, the base's Q-Former has 64 positions: set "
            "data.max_instruction_tokens=64 or less",
        ),
        (
            config_with("qformer_config", max_position_embeddings=63),
            [],
            "data.max_instruction_tokens is 64, the base's Q-Former has 63 positions: set "
            "data.max_instruction_tokens=63 or less",
        ),
        (
            lambda base: None,
            ["data.image_size=224"],
            "data.image_size is 224, the base's vision tower takes 16: set data.image_size=16",
        ),
        (
            lambda base: None,
            ["model.train_parts.language=lora", "model.lora={targets: [query_proj]}"],
            "query_proj",
        ),
    ],
)
def test_a_base_that_training_would_refuse(complete, damage, overrides, said):
    base = complete.parent / "base"
    rows = len(weights_of(base / SINGLE_NAME)[HEAD])
    damage(base)
    recipe = load_recipe(str(complete), overrides)
    with pytest.raises(ValueError) as refused:
        open_start(recipe)
    assert said.format(base=base, rows=rows) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert opened_finding(recipe) == Finding(
        "base", "MISS", "training would refuse it", str(refused.value)
    )


@pytest.mark.usefixtures("logger_as_it_was")
def test_training_refuses_what_check_misses(complete, capsys, monkeypatch):
    """Neither has a copy of the other's look at a base."""
    monkeypatch.setattr("ibtrain.training.loop.start_processes", lambda: Ranks(0, 1, 0, 1))
    monkeypatch.setattr("ibtrain.training.request.resolve_mixture", lambda *_: None)
    pointer(SINGLE_NAME)(complete.parent / "base")
    assert main(["check", str(complete)]) == 1
    assert "MISS  base " in capsys.readouterr().out
    assert main(["train", str(complete)]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("ibtrain: ") and LFS in said


def test_an_ablation_that_reads_no_instruction_needs_no_positions(complete):
    overrides = ["model.instruction_aware=false", "data.max_instruction_tokens=65"]
    assert opened_finding(load_recipe(str(complete), overrides)).status == "OK"
