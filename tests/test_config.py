import os
from pathlib import Path
from random import Random

import pytest
import yaml

from ibtrain.config import (
    Recipe,
    RecipeError,
    dump_recipe,
    load_recipe,
    recipe_path,
    shipped_recipes,
)
from ibtrain.sharding import read_sharding
from tests.data.mutations import mutate

MINIMAL = """\
name: small
output: runs/small
model:
  base: bases/vicuna
data:
  mixture:
    - {dataset: vqav2, path: shards/vqav2}
    - {dataset: coco, path: shards/coco, factor: 2.5}
training:
  steps: 100
  global_batch: 8
  micro_batch: 2
"""
EXPECTED = {
    "name": "small",
    "root": ".",
    "output": "runs/small",
    "seed": 0,
    "sharding": "zero3",
    "kernels": "auto",
    "model": {
        "base": "bases/vicuna",
        "parts": None,
        "random_base": None,
        "allow_download": False,
        "language_release": None,
        "instruction_aware": True,
        "train_parts": {
            "vision": "frozen",
            "qformer": "full",
            "projection": "full",
            "language": "frozen",
        },
        "lora": None,
        "precision": "bf16",
        "gradient_checkpointing": False,
    },
    "data": {
        "mixture": [
            {"dataset": "vqav2", "path": "shards/vqav2", "factor": 1.0, "forms": {}},
            {"dataset": "coco", "path": "shards/coco", "factor": 2.5, "forms": {}},
        ],
        "balance": "sqrt",
        "draw": "sample",
        "epoch_samples": None,
        "prompts": "instructions",
        "image_size": 224,
        "augmentation": "crop_flip",
        "max_instruction_tokens": 128,
        "max_answer_tokens": 256,
        "workers": 4,
        "worker_timeout": 1800.0,
        "cache": None,
        "bad_shard_budget": 0.01,
    },
    "training": {
        "steps": 100,
        "global_batch": 8,
        "micro_batch": 2,
        "learning_rate": 1e-5,
        "warmup_steps": 1000,
        "warmup_start": 1e-8,
        "min_learning_rate": 0.0,
        "weight_decay": 0.05,
        "betas": [0.9, 0.999],
        "gradient_clip": 0.0,
        "log_every": 10,
    },
    "checkpoint": {"every": 1000, "keep": 3, "resume_from": None, "accept_changed_data": False},
}
RANDOM_BASE = {
    "processor": "toy/processor",
    "vision": {"hidden_size": 8},
    "qformer": {},
    "language": {"model_type": "llama"},
}


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> str:
        file = tmp_path / "recipe.yaml"
        file.write_text(text, encoding="utf-8")
        return str(file)

    return write


@pytest.fixture
def minimal(write) -> str:
    return write(MINIMAL)


def fault(recipe: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, overrides)
    return str(caught.value)


def test_a_recipe_and_every_default(minimal):
    assert load_recipe(minimal).model_dump(mode="json") == EXPECTED


def test_overrides_are_yaml_values_under_dotted_keys(minimal):
    recipe = load_recipe(
        minimal,
        [
            "training.steps=7",
            "training.learning_rate=3e-4",
            "model.instruction_aware=false",
            "model.train_parts.language=full",
            "data.cache=/scratch/c=1",
            "checkpoint.resume_from=step-00000010",
            "training.betas=[0.8,0.9]",
            "data.epoch_samples=null",
            "data.mixture.1.factor=4",
        ],
    )
    assert recipe.training.steps == 7
    assert recipe.training.learning_rate == 3e-4
    assert recipe.model.instruction_aware is False
    assert recipe.model.train_parts.language == "full"
    assert recipe.data.cache == Path("/scratch/c=1")
    assert recipe.checkpoint.resume_from == "step-00000010"
    assert recipe.training.betas == (0.8, 0.9)
    assert recipe.data.epoch_samples is None
    assert [entry.factor for entry in recipe.data.mixture] == [1.0, 4.0]


def test_root_stands_for_itself(write):
    recipe = load_recipe(write("root: /data\n" + MINIMAL.replace("bases", "${root}/bases")))
    assert recipe.model.base == Path("/data/bases/vicuna")
    moved = load_recipe(
        write(MINIMAL.replace("bases", "${root}/bases") + "root: /data\n"), ["root=/mnt"]
    )
    assert moved.model.base == Path("/mnt/bases/vicuna")


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["training.learning_rate=1e-7", "training.betas=[0.1,0.99]", "seed=5"],
        ['data.cache="a b/ö: #x"', "checkpoint.resume_from='007'", "name='null'", "output='1e3'"],
        ["name=${root}/x", "root=/r"],
    ],
)
def test_a_dumped_recipe_loads_equal(minimal, write, overrides):
    recipe = load_recipe(minimal, overrides)
    assert load_recipe(write(dump_recipe(recipe))) == recipe


def test_a_dumped_random_base_loads_equal(write):
    values = yaml.safe_load(MINIMAL)
    values["model"] = {"random_base": RANDOM_BASE, "precision": "fp32"}
    recipe = load_recipe(write(yaml.safe_dump(values)))
    assert recipe.model.random_base is not None
    assert recipe.model.random_base.vision == {"hidden_size": 8}
    assert recipe.model.random_base.num_query_tokens == 32
    assert load_recipe(write(dump_recipe(recipe))) == recipe


@pytest.mark.parametrize(
    ("found", "instead", "said"),
    [
        ("name: small", "nam: small", "unknown key 'nam'; did you mean 'name'?"),
        ("  steps:", "  step:", "unknown key 'training.step'; did you mean 'steps'?"),
        ("path: shards/v", "pth: shards/v", "unknown key 'data.mixture.0.pth'; did you mean 'path"),
        ("factor: 2.5", "faktor: 2.5", "'data.mixture.1.faktor'; did you mean 'factor'?"),
        (
            "  base: bases/vicuna",
            "  base: b\n  train_parts: {qfomer: full}",
            "unknown key 'model.train_parts.qfomer'; did you mean 'qformer'?",
        ),
        (
            "  base: bases/vicuna",
            "  random_base: {procesor: p}",
            "unknown key 'model.random_base.procesor'; did you mean 'processor'?",
        ),
        (
            "name: small",
            "name: small\ncheckpoint: {zzzzzz: 1}",
            "unknown key 'checkpoint.zzzzzz'; known here: every, keep, resume_from, accept_",
        ),
        ("micro_batch: 2", "", "the key 'training.micro_batch' is missing"),
        ("name: small", "", "the key 'name' is missing"),
        ("steps: 100", "steps: many", "training.steps: Input should be a valid integer"),
        ("steps: 100", "steps: many", "found 'many'"),
        ("steps: 100", "steps: 0", "training.steps: Input should be greater than or equal to 1"),
        ("steps: 100", "steps: 1.5", "training.steps: "),
        ("steps: 100", "steps:", "training.steps: Input should be a valid integer, found None"),
        ("factor: 2.5", "factor: 0", "data.mixture.1.factor: Input should be greater than 0"),
        ("name: small", "name: small\nmodell: {}", "unknown key 'modell'; did you mean 'model'?"),
        ("name: small", "name: small\nseed: -1", "seed: Input should be greater than or equal"),
        ("training:\n", "training: 3\nx:\n", "training: Input should be a valid dictionary"),
        (
            "  base: bases/vicuna",
            "  precision: fp32",
            "give exactly one of base, parts and random_base",
        ),
        (
            "  base: bases/vicuna",
            "  base: b\n  precision: fp16",
            "model.precision: Input should be 'bf16' or 'fp32', found 'fp16'",
        ),
        (
            "  base: bases/vicuna",
            "  base: b\n  random_base: {processor: p, vision: {}, qformer: {}, language: {}}",
            "model: give exactly one of base, parts and random_base",
        ),
        (
            "  base: bases/vicuna",
            "  base: b\n  train_parts: {qformer: frozen, projection: frozen}",
            "model.train_parts: every part is frozen: set at least one of them to full",
        ),
        ("dataset: coco", "dataset: vqav2", "data: mixture names 'vqav2' twice"),
        ("output: runs/small", "output: ${roof}/small", "roof"),
    ],
)
def test_what_is_wrong_is_named(write, found, instead, said):
    assert MINIMAL.count(found) == 1
    file = write(MINIMAL.replace(found, instead))
    message = fault(file)
    assert said in message
    assert file in message


def test_every_fault_has_a_line(write):
    text = MINIMAL.replace("steps", "stesp").replace("name:", "nmae:")
    lines = fault(write(text)).splitlines()
    assert [line.split("recipe.yaml: ")[1] for line in lines] == [
        "the key 'name' is missing",
        "the key 'training.steps' is missing",
        "unknown key 'training.stesp'; did you mean 'steps'?",
        "unknown key 'nmae'; did you mean 'name'?",
    ]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.stepz=5", "unknown key 'training.stepz'; did you mean 'steps'?"),
        ("trainning.steps=5", "unknown key 'trainning'; did you mean 'training'?"),
        ("training.steps", "override 'training.steps' is not of the form key=value"),
        ("--steps", "override '--steps' is not of the form key=value (for example training."),
        ("=5", "override '=5' is not of the form key=value"),
        ("training.steps=", "training.steps: Input should be a valid integer"),
        ("training.steps=[", "cannot be read as a recipe"),
        ("training.steps.more=3", "training.steps: Input should be a valid integer"),
        ("training=5", "training: Input should be a valid dictionary"),
        ("data.mixture=[]", "data.mixture: "),
        ("data.mixture.0.dataset=coco", "data: mixture names 'coco' twice"),
        ("data.mixture.0.factr=2", "unknown key 'data.mixture.0.factr'; did you mean 'factor'?"),
        ("data.mixture.7.factor=2", "cannot be read as a recipe"),
        ("model.train_parts.qformer=none", "Input should be 'frozen' or 'full', found 'none'"),
    ],
)
def test_a_wrong_override_is_named(minimal, override, said):
    assert said in fault(minimal, override)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- name: small\n", "is not a mapping of keys to values"),
        ("just words\n", "unknown key 'just words'"),
        ("name: [unclosed\n", "cannot be read as a recipe"),
        ("name: a\n\tseed: 1\n", "cannot be read as a recipe"),
        ("name: a\nname: b\n", "cannot be read as a recipe"),
        ("", "the key 'name' is missing"),
        ("? [1, 2]\n: 3\n", "recipe"),
        ("3: 4\n", "3: Keys should be strings, found 3"),
    ],
)
def test_a_file_that_is_no_recipe(write, text, said):
    assert said in fault(write(text))


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"name: \xff\xfe\n")
    assert "cannot be read as a recipe" in fault(str(tmp_path / "recipe.yaml"))


def test_an_unknown_name_gets_the_nearest(monkeypatch, tmp_path):
    for name in ("toy", "toy-base", "vicuna7b"):
        (tmp_path / f"{name}.yaml").write_text(MINIMAL)
    monkeypatch.setattr("ibtrain.config.RECIPES", tmp_path)
    assert list(shipped_recipes()) == ["toy-base", "toy", "vicuna7b"]
    assert load_recipe("vicuna7b").name == "small"
    with pytest.raises(RecipeError) as caught:
        recipe_path("vicuna-7b")
    assert str(caught.value) == (
        "no recipe 'vicuna-7b': it is neither a file nor a shipped recipe; "
        "did you mean 'vicuna7b'? shipped are toy-base, toy, vicuna7b"
    )
    with pytest.raises(RecipeError, match="shipped recipe; shipped are toy-base, toy, vicuna7b"):
        recipe_path("/nowhere/at/all.yaml")


def test_a_recipe_does_not_change(minimal):
    recipe = load_recipe(minimal)
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_loads(name, write):
    recipe = load_recipe(name)
    assert isinstance(recipe, Recipe)
    assert recipe.name == name
    assert load_recipe(write(dump_recipe(recipe))) == recipe


@pytest.mark.parametrize("written", ["off", "'off'", "false"])
def test_kernels_off_is_a_word_whatever_yaml_makes_of_it(minimal, written):
    recipe = load_recipe(minimal, [f"kernels={written}"])
    assert recipe.kernels == "off"
    assert "kernels: 'off'" in dump_recipe(recipe)
    with pytest.raises(RecipeError, match=r"kernels: .*'auto' or 'off'.*found 'on'"):
        load_recipe(minimal, ["kernels='on'"])


@pytest.mark.parametrize("part", ["qformer", "projection"])
def test_a_random_part_that_is_frozen_is_refused(tmp_path, part):
    file = tmp_path / "recipe.yaml"
    file.write_text(MINIMAL.replace("base: bases/vicuna", "parts: {bert: b, language: c}"))
    overrides = [f"model.parts.random=[{part}]", f"model.train_parts.{part}=frozen"]
    load_recipe(str(file), overrides[:1])
    with pytest.raises(RecipeError, match=f"names {part}, which train_parts freezes, so it would"):
        load_recipe(str(file), overrides)


def test_an_infinite_alpha_is_refused(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(MINIMAL)
    with pytest.raises(RecipeError, match=r"lora\.alpha: Input should be a finite number"):
        load_recipe(str(file), ["model.train_parts.language=lora", "model.lora={alpha: .inf}"])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", r"own\.json cannot be read as JSON \(.*\); correct it"),
        ("[3]", r"own\.json is not a JSON object, as a DeepSpeed configuration is"),
        (
            '{"zero_optimization": [3]}',
            r"own\.json sets zero_optimization to \[3\]; it is a JSON object",
        ),
    ],
)
def test_a_deepspeed_file_that_is_none(text, fault, tmp_path):
    (tmp_path / "own.json").write_text(text)
    with pytest.raises(RecipeError, match=fault):
        read_sharding(str(tmp_path / "own.json"))


def test_damaged_recipes_end_in_sentences(tmp_path):
    """A changing seed; a failure shows it as the last that was printed."""
    count = max(40, int(os.environ.get("IBTRAIN_FUZZ", "0")) // 4)
    start = Random().randrange(10**9)
    sources = [file.read_bytes() for file in shipped_recipes().values()]
    path = tmp_path / "own.yaml"
    outcomes = set()
    for seed in range(start, start + count):
        random = Random(seed)
        mutation = mutate(random.choice(sources), ".yaml", random)
        print(seed, mutation.done)
        path.write_bytes(mutation.data)
        try:
            load_recipe(str(path), [f"root={tmp_path}"])
            outcomes.add("read")
        except RecipeError as error:
            assert str(path) in str(error), seed
            outcomes.add("refused")
    assert "refused" in outcomes


def test_a_recipe_that_is_a_pointer_of_git_lfs(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n")
    with pytest.raises(RecipeError, match=r"own\.yaml is a pointer of Git LFS .* not the file"):
        load_recipe(str(path))


def test_a_recipe_that_grows_when_read_is_refused(tmp_path):
    path = tmp_path / "own.yaml"
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    for text in ("\n".join(lines), "name: x\noutput: " + "[" * 30_000, "a: &a [*a]", "x" * 2**21):
        path.write_text(text)
        with pytest.raises(RecipeError, match=r"own\.yaml cannot be read as a recipe"):
            load_recipe(str(path))
