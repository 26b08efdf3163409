import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from ibtrain.cli import main
from ibtrain.export import export
from ibtrain.export.card import _base_license, _plain, base_names, hub_name
from ibtrain.pretrained.finding import find_model
from tests.tiny import write_tiny_base
from tests.tiny_run import tiny_recipe, write_tiny_run


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_processor) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("cards") / "base", tiny_processor)


@pytest.fixture(scope="module")
def run(tmp_path_factory, base) -> Path:
    run = tmp_path_factory.mktemp("cards") / "run"
    lora = {"rank": 3, "alpha": 8}
    write_tiny_run(run, step=7, base=base, train_parts={"language": "lora"}, lora=lora)
    return run


@pytest.fixture
def evaluation(tmp_path) -> Path:
    directory = tmp_path / "evaluation"
    directory.mkdir()
    row = {"metric": "exact match", "value": 0.495, "interval": [0.4, 0.6], "n": 12578}
    (directory / "results.json").write_text(json.dumps({"benchmarks": {"gqa": row}}))
    return directory


def head(directory: Path) -> dict:
    text = (directory / "README.md").read_text()
    return yaml.safe_load(text.split("---\n")[1])


@pytest.mark.parametrize("kind", ["hf", "peft", "lavis"])
def test_each_export_has_a_card_that_the_hub_reads(run, evaluation, tmp_path, kind):
    out = tmp_path / "out"
    export(run, out, kind, evaluation=evaluation)
    card = ModelCard.load(out / "README.md")
    data = card.data
    assert (data.license, data.license_name) == ("other", "not-stated")
    assert data.pipeline_tag == "image-text-to-text" and data.datasets == ["vqav2"]
    assert data.library_name == {"hf": "transformers", "peft": "peft", "lavis": None}[kind]
    [result] = data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == (
        *("gqa", "exact_match"),
        0.495,
    )
    # A path of this machine is no name of a base, and the hub would refuse it.
    assert data.base_model is None and "/base" not in card.text
    text = card.text
    assert "# tiny, step 7" in text and "LoRA: rank 3, alpha 8" in text
    assert "trained: qformer (full), projection (full), language (lora)" in text
    assert "| gqa | exact match | 49.50% | 40.00% to 60.00% | 12,578 |" in text
    assert "Set `license` in the head of this file" in text
    assert find_model(out) is not None


def test_what_the_card_tells_to_run_runs(run, tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 20), (200, 30, 40)).save("picture.jpg")
    for kind in ("hf", "peft"):
        export(run, tmp_path / kind, kind)
        code = (tmp_path / kind / "README.md").read_text().split("```python\n")[1].split("```")[0]
        exec(code.replace("PATH", str(tmp_path / kind)), {})


def test_licence_and_base_are_carried_over(base, tmp_path, tiny_processor):
    cached = tmp_path / "models--Salesforce--instructblip-vicuna-7b/snapshots/0123abc"
    cached.parent.mkdir(parents=True)
    write_tiny_base(cached, tiny_processor)
    front = "---\nlicense: apache-2.0\nlicense_link: x\nlanguage: [en]\n---\n# base\n"
    (cached / "README.md").write_text(front)
    run = tmp_path / "run"
    write_tiny_run(run, base=cached, train_parts={"language": "lora"}, lora={"rank": 2, "alpha": 4})
    export(run, tmp_path / "adapter", "peft")
    fields = head(tmp_path / "adapter")
    assert fields["base_model"] == "Salesforce/instructblip-vicuna-7b"
    assert fields["base_model_relation"] == "adapter"
    assert (fields["license"], fields["license_link"]) == ("apache-2.0", "x")
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "Salesforce/instructblip-vicuna-7b"
    assert "the base's own model card names" in (tmp_path / "adapter/README.md").read_text()
    for text in ("no front", "---\n- 1\n---\n", "---\n{\n---\n", "---\nlicense: [1]\n---\n"):
        (cached / "README.md").write_text(text)
        assert _base_license(find_model(run)) == {}


def test_names_of_bases(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_name(Path("Salesforce/instructblip-flan-t5-xl")) == (
        "Salesforce/instructblip-flan-t5-xl"
    )
    assert hub_name(Path("/data/weights/base")) is None and hub_name(None) is None
    (tmp_path / "weights/base").mkdir(parents=True)
    assert hub_name(Path("weights/base")) is None
    snapshot = tmp_path / "hub/models--lmsys--vicuna-7b-v1.1/snapshots/1"
    snapshot.mkdir(parents=True)
    (tmp_path / "linked").symlink_to(snapshot)
    assert hub_name(tmp_path / "linked") == "lmsys/vicuna-7b-v1.1"
    parts = {"bert": "b", "language": str(snapshot), "stage2": "Salesforce/blip2-x"}
    recipe = tiny_recipe(tmp_path, parts=parts)
    assert base_names(recipe) == ["lmsys/vicuna-7b-v1.1", "Salesforce/blip2-x"]
    assert base_names(None) == []


@pytest.mark.usefixtures("logger_as_it_was")
def test_an_evaluation_that_is_none_is_refused_before_any_work(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    words = ["export", str(run), "--to", "hf", "--out", str(tmp_path / "out"), "--evaluation"]
    assert main([*words, str(tmp_path / "empty")]) == 2
    assert "give a directory that `ibtrain evaluate` wrote" in capsys.readouterr().err
    (tmp_path / "empty/results.json").write_text(
        '{"benchmarks": {"gqa": {"value": 0.5}}, "model": {"step": 6}}'
    )
    assert main([*words, str(tmp_path / "empty")]) == 2
    assert "empty is of step 6, and the model of step 7" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_hostile_name_is_no_markup():
    assert _plain("a\n# b <img src=x> [c](d)") == "a \\# b \\<img src=x\\> \\[c\\](d)"
