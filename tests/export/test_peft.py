import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import InstructBlipForConditionalGeneration

from ibtrain.export import export, proof
from ibtrain.export.proof import ExportError
from ibtrain.pretrained.finding import find_model
from ibtrain.pretrained.peft import read_adapter_settings
from ibtrain.pretrained.tensors import SINGLE_NAME
from tests.tiny import weights_of, write_tiny_base
from tests.tiny_run import write_tiny_run


@pytest.fixture(scope="module", params=["llama", "t5"])
def base(request, tmp_path_factory, tiny_processor) -> Path:
    directory = tmp_path_factory.mktemp("base") / "base"
    return write_tiny_base(directory, tiny_processor, language=request.param)


@pytest.fixture(scope="module")
def run(tmp_path_factory, base) -> Path:
    run = tmp_path_factory.mktemp("run") / "run"
    lora = {"rank": 3, "alpha": 8}
    write_tiny_run(run, base=base, train_parts={"language": "lora"}, lora=lora)
    return run


@pytest.fixture(scope="module")
def adapter(run) -> Path:
    return export(run, run.with_name("adapter"), "peft").directory


def logits(path: Path) -> torch.Tensor:
    return proof._our_logits(find_model(path), proof._drawn_picture())


def adapted(model: torch.nn.Module, adapter: Path) -> dict[str, torch.Tensor]:
    """peft's merged weights by name, without a warning of keys that are missing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys")
        merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return merged.state_dict()


def test_peft_opens_it_on_the_language_model_and_on_the_whole_base(run, base, adapter):
    ours = find_model(run)
    names = [name for name in ours.sources if name.startswith("language_model.")]
    language = InstructBlipForConditionalGeneration.from_pretrained(base).language_model
    alone = adapted(language, adapter)
    whole = adapted(InstructBlipForConditionalGeneration.from_pretrained(base), adapter)
    changed = 0
    untouched = load_file(base / SINGLE_NAME)
    for name in names:
        value = ours.sources[name].get(name)
        torch.testing.assert_close(alone[name.removeprefix("language_model.")], value)
        torch.testing.assert_close(whole[name], value)
        changed += not torch.equal(value, untouched[name])
    assert changed == len(ours.adapters.sources) // 2 > 0


def test_merged_equals_applied(run, adapter, tmp_path):
    report = json.loads((adapter / "export_report.json").read_text())
    assert report["proof"]["max_abs_logit_error"] < 1e-5 * max(10, report["proof"]["max_abs_logit"])
    kept = export(run, tmp_path / "kept", "hf", keep_adapter=True)
    merged = export(run, tmp_path / "merged", "hf")
    assert (kept.directory / "adapter" / "adapter_config.json").is_file()
    assert not (merged.directory / "adapter").exists()
    for path in (kept.directory, merged.directory, adapter):
        assert torch.equal(logits(path), logits(run))


def test_the_whole_model_is_opened_again(run, adapter):
    again = find_model(adapter)
    for name, source in find_model(run).sources.items():
        assert torch.equal(again.sources[name].get(name), source.get(name)), name


def test_a_model_without_adapters(base, tmp_path):
    with pytest.raises(ValueError, match="has no adapters to write"):
        export(base, tmp_path / "out", "peft")
    assert not list(tmp_path.iterdir())


def test_an_adapter_on_another_base_is_refused(adapter, base):
    weights = weights_of(base / SINGLE_NAME)
    name = sorted(weights)[0]
    save_file(weights | {name: weights[name] + 1}, base / SINGLE_NAME, metadata={"format": "pt"})
    try:
        with pytest.raises(ValueError, match="was trained on another base: the weights of"):
            find_model(adapter)
    finally:
        save_file(weights, base / SINGLE_NAME, metadata={"format": "pt"})
    find_model(adapter)


def test_another_kind_of_adapter_is_refused(adapter):
    file = adapter / "adapter_config.json"
    text = file.read_text()
    file.write_text(json.dumps(json.loads(text) | {"use_dora": True}))
    try:
        with pytest.raises(ValueError, match="use_dora is True"):
            find_model(adapter)
    finally:
        file.write_text(text)


def test_an_adapter_of_another_language_model_is_refused(run, tmp_path):
    kept = export(run, tmp_path / "kept", "hf", keep_adapter=True).directory
    file = kept / "adapter/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"target_modules": ["w3"]}))
    with pytest.raises(ValueError, match=r"kept/adapter is of another language model: .*'w3'"):
        find_model(kept)


def test_adapters_that_got_changed_fail_the_proof(run, tmp_path, monkeypatch):
    put = proof._put_adapters

    def changed(model, directory):
        file = directory / "adapter_model.safetensors"
        save_file({name: 2 * tensor for name, tensor in weights_of(file).items()}, file)
        put(model, directory)

    monkeypatch.setattr(proof, "_put_adapters", changed)
    with pytest.raises(ExportError, match="logits differ"):
        export(run, tmp_path / "out", "peft")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["trained.safetensors", "recipe.yaml", "export_report.json"])
def test_an_export_that_lost_a_file_is_refused(adapter, tmp_path, name):
    shutil.copytree(adapter, tmp_path / "copied")
    (tmp_path / "copied" / name).unlink()
    with pytest.raises(ValueError, match=rf"{name}.*copy the export again"):
        find_model(tmp_path / "copied")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"r": 6}, "r is 6, and the recipe beside it was trained with 3"),
        ({"lora_alpha": 9}, r"lora_alpha is 9\.0, and the recipe beside it was trained with 8"),
        ({"target_modules": ["lm_head"]}, "target_modules is "),
        ({"r": None}, "rank cannot be None"),
        ({"target_modules": [1]}, "targets cannot be 1"),
        ({"lora_bias": True}, "lora_bias is True"),
    ],
)
def test_settings_that_it_was_not_trained_with_are_refused(adapter, tmp_path, changes, said):
    shutil.copytree(adapter, tmp_path / "copied")
    file = tmp_path / "copied/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=said):
        find_model(tmp_path / "copied")


def test_an_export_that_lost_its_adapters_is_refused(run, tmp_path):
    kept = export(run, tmp_path / "kept", "hf", keep_adapter=True).directory
    shutil.rmtree(kept / "adapter")
    with pytest.raises(ValueError, match=r"adapter/adapter_config\.json is missing"):
        find_model(kept)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "which changes the base's weights as well"),
        ({"alora_invocation_tokens": [5]}, r"alora_invocation_tokens is \[5\]"),
    ],
)
def test_adapters_that_are_more_than_adapters(adapter, tmp_path, values, said):
    given = json.loads((adapter / "adapter_config.json").read_text()) | values
    (tmp_path / "adapter_config.json").write_text(json.dumps(given))
    with pytest.raises(ValueError, match=rf"adapter_config\.json.*{said}"):
        read_adapter_settings(tmp_path)


def test_an_export_of_an_export_keeps_what_was_trained(run, tmp_path):
    """In a whole model what was trained lies among what was not; the recipe tells them apart."""
    expected = logits(run)
    largest = expected.abs().max().item()
    kept = export(run, tmp_path / "kept", "hf", keep_adapter=True).directory
    merged = export(run, tmp_path / "merged", "hf").directory
    for number, (source, to) in enumerate([(kept, "peft"), (kept, "lavis"), (merged, "lavis")]):
        again = export(source, tmp_path / f"again-{number}", to).directory
        assert (logits(again) - expected).abs().max().item() < 1e-5 * largest
        assert find_model(again).base == find_model(run).base
    (kept / "export_report.json").unlink()  # the recipe alone says as much
    again = export(kept, tmp_path / "without-report", "peft").directory
    assert (logits(again) - expected).abs().max().item() < 1e-5 * largest
