import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    Blip2ForConditionalGeneration,
    Blip2Processor,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
)

from ibtrain.config import load_recipe
from ibtrain.export import huggingface, proof
from ibtrain.export.huggingface import export_huggingface
from ibtrain.export.proof import ExportError
from ibtrain.model.language import ATTENTION_NAME
from ibtrain.pretrained.opening import open_model
from ibtrain.pretrained.tensors import SINGLE_NAME
from tests.tiny import QUERY_TOKENS, weights_of, write_tiny_base
from tests.tiny_run import write_tiny_run


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_processor) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "base", tiny_processor)


@pytest.fixture(scope="module")
def run(tmp_path_factory, base) -> Path:
    run = tmp_path_factory.mktemp("run") / "run"
    write_tiny_run(run, 5, base=base)
    return run


def same_weights(first, second) -> None:
    ours = dict(first.model.named_parameters())
    theirs = dict(second.model.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        assert torch.equal(parameter, theirs[name]), name


def test_an_export_of_a_run_is_opened_by_transformers(run, tmp_path):
    report = export_huggingface(run, tmp_path / "out")
    assert report.directory == tmp_path / "out"
    assert report.proof["max_abs_logit_error"] < 1e-4
    assert report.proof["answer_tokens"] > 10
    assert report.proof["max_abs_pixel_error"] < 0.05  # transformers 5 resizes tensors: 0.015
    opened = open_model(run)
    theirs = InstructBlipForConditionalGeneration.from_pretrained(report.directory).state_dict()
    for name, parameter in opened.model.named_parameters():
        assert torch.equal(parameter, theirs[name]), name
    processor = InstructBlipProcessor.from_pretrained(report.directory)
    assert processor.num_query_tokens == QUERY_TOKENS
    assert processor.qformer_tokenizer.is_fast
    inputs = processor(images=Image.new("RGB", (30, 20)), text="Where?", return_tensors="pt")
    config = InstructBlipForConditionalGeneration.from_pretrained(report.directory).config
    assert (inputs.input_ids[0, :QUERY_TOKENS] == config.image_token_index).all()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_an_export_says_of_itself(run, tmp_path):
    directory = export_huggingface(run, tmp_path / "out").directory
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == ["InstructBlipForConditionalGeneration"]
    assert config["dtype"] == "float32"
    assert config["text_config"]["pad_token_id"] == 384  # the tokenizer's; the base says 0
    assert ATTENTION_NAME not in (directory / "config.json").read_text()
    assert str(run.parent) not in (directory / "config.json").read_text()
    generation = json.loads((directory / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (2, 384)
    report = json.loads((directory / "export_report.json").read_text())
    assert (report["run"], report["step"], report["format"]) == ("tiny", 5, "instructblip")
    assert report["proof"]["tokens_equal"] is True
    assert load_recipe(str(directory / "recipe.yaml")) == open_model(run).recipe


def test_an_export_in_shards_is_a_model_again(run, tmp_path):
    first = export_huggingface(run, tmp_path / "first").directory
    again = export_huggingface(first, tmp_path / "again", shard_bytes=50_000).directory
    assert len(list(again.glob("model-*-of-*.safetensors"))) > 3
    same_weights(open_model(run), open_model(again))
    opened = open_model(again)
    assert opened.recipe == open_model(run).recipe
    assert opened.step is None


def test_the_ablation_becomes_blip2(base, tmp_path):
    run = tmp_path / "run"
    write_tiny_run(run, base=base, instruction_aware=False)
    report = export_huggingface(run, tmp_path / "out")
    assert report.proof["max_abs_logit_error"] < 1e-4
    model, loading = Blip2ForConditionalGeneration.from_pretrained(
        report.directory, output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    Blip2Processor.from_pretrained(report.directory)
    opened = open_model(report.directory)
    assert not opened.model.instruction_aware
    same_weights(open_model(run), opened)
    assert torch.equal(
        model.qformer.layernorm.weight, opened.model.qformer.embeddings.layernorm.weight
    )


def test_another_dtype(run, tmp_path):
    report = export_huggingface(run, tmp_path / "out", dtype=torch.bfloat16)
    assert report.proof["max_abs_logit_error"] > 0
    weights = load_file(report.directory / SINGLE_NAME)
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert json.loads((report.directory / "config.json").read_text())["dtype"] == "bfloat16"


def test_an_output_that_exists_is_refused(run, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="exists, and an export replaces nothing"):
        export_huggingface(run, tmp_path / "out")
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="exists, and an export replaces nothing"):
        export_huggingface(run, tmp_path / "out")
    with pytest.raises(ValueError, match="is a file"):
        export_huggingface(run, tmp_path / "out" / "thesis.txt")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "precious"


def test_directories_on_the_way_are_made(run, tmp_path):
    export_huggingface(run, tmp_path / "deep" / "out")
    assert (tmp_path / "deep" / "out" / "config.json").is_file()


def test_a_write_that_fails_leaves_nothing(run, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface, "write_weights", full)
    with pytest.raises(OSError, match="No space"):
        export_huggingface(run, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_weights_that_got_changed_fail_the_proof(run, tmp_path, monkeypatch):
    weights = huggingface._weights

    def changed(found, dtype):
        for name, tensor in weights(found, dtype):
            yield name, tensor + 0.01 if name == "language_projection.weight" else tensor

    monkeypatch.setattr(huggingface, "_weights", changed)
    with pytest.raises(ExportError, match="logits differ"):
        export_huggingface(run, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_numbers_fail_the_proof(base, tmp_path):
    broken = export_huggingface(base, tmp_path / "broken").directory
    weights = weights_of(broken / SINGLE_NAME)
    weights["query_tokens"][0, 0, 0] = float("nan")
    save_file(weights, broken / SINGLE_NAME, metadata={"format": "pt"})
    with pytest.raises(ExportError, match="differ from the model's by nan"):
        export_huggingface(broken, tmp_path / "out")


def test_other_tokens_fail_the_proof(run, tmp_path, monkeypatch):
    write_processor = huggingface._write_processor

    def changed(found, directory):
        tokenizer = write_processor(found, directory)
        for name, lowers in (
            ("tokenizer.json", "lowercase"),
            ("tokenizer_config.json", "do_lower_case"),  # not of every release
        ):
            file = directory / "qformer_tokenizer" / name
            text = file.read_text()
            assert f'"{lowers}": true' in text or name == "tokenizer_config.json"
            file.write_text(text.replace(f'"{lowers}": true', f'"{lowers}": false'))
        return tokenizer

    monkeypatch.setattr(huggingface, "_write_processor", changed)
    with pytest.raises(ExportError, match="gives the Q-Former other tokens"):
        export_huggingface(run, tmp_path / "out")


def test_other_pixels_fail_the_proof(base, tmp_path):
    changed = export_huggingface(base, tmp_path / "changed").directory
    file = changed / "preprocessor_config.json"
    if not file.is_file():
        file = changed / "processor_config.json"
    values = json.loads(file.read_text())
    values.get("image_processor", values)["image_mean"] = [0.0, 0.0, 0.0]
    file.write_text(json.dumps(values))
    with pytest.raises(ExportError, match="pixels differ"):
        export_huggingface(changed, tmp_path / "out")


def test_a_vocabulary_without_room_for_the_image_token_gets_a_row(base, tmp_path):
    narrow = export_huggingface(base, tmp_path / "narrow").directory
    for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json"):
        file = narrow / name
        if file.is_file():
            file.write_text(file.read_text().replace("<image>", "<piece>"))
    rows = open_model(narrow).model.language_model.lm_head.weight
    grown = export_huggingface(narrow, tmp_path / "out")
    weights = load_file(grown.directory / SINGLE_NAME)
    for name in ("model.embed_tokens", "lm_head"):
        assert weights[f"language_model.{name}.weight"].shape[0] == rows.shape[0] + 1
    last = weights["language_model.lm_head.weight"]
    assert torch.equal(last[:-1], rows)
    torch.testing.assert_close(last[-1], rows.mean(0))
    processor = InstructBlipProcessor.from_pretrained(grown.directory)
    assert processor.tokenizer.convert_tokens_to_ids("<image>") == rows.shape[0]


def test_the_batch_of_the_proof_tells_pictures_and_instructions_apart(base):
    found = huggingface.find_model(base)
    seen = proof._our_logits(found, proof._drawn_picture())
    blank = proof._our_logits(found, Image.new("RGB", (120, 90)))
    assert (seen - blank).abs().max() > 100 * proof.TOLERANCE


def test_a_disk_too_full_for_a_tokenizer(base, tmp_path, monkeypatch):
    def full(*arguments, **more):
        raise Exception("No space left on device (os error 28)")  # as the tokenizers library does

    monkeypatch.setattr("ibtrain.export.huggingface.InstructBlipProcessor.save_pretrained", full)
    with pytest.raises(OSError, match=r"cannot be written \(No space left.*is the disk full\?"):
        export_huggingface(base, tmp_path / "out")
    assert not list(tmp_path.iterdir())
