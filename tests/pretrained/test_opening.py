import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import InstructBlipForConditionalGeneration

from ibtrain.config import dump_recipe
from ibtrain.data.mixture.collate import Sample, collate
from ibtrain.pretrained.finding import find_model
from ibtrain.pretrained.opening import OpenedModel, open_model
from ibtrain.pretrained.sources import from_blip2_name, to_blip2_name
from ibtrain.pretrained.tensors import SINGLE_NAME
from ibtrain.run_directory import MANIFEST, STATE, TRAINABLE
from tests.tiny import (
    IMAGE_SIZE,
    QUERY_TOKENS,
    tiny_architecture,
    vocabularies,
    weights_of,
    write_tiny_base,
)
from tests.tiny_run import tiny_recipe, write_tiny_run


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_processor) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "base", tiny_processor)


def copied(directory: Path, target: Path) -> Path:
    target.mkdir()
    for path in directory.rglob("*"):
        place = target / path.relative_to(directory)
        if path.is_dir():
            place.mkdir()
        else:
            place.write_bytes(path.read_bytes())
    return target


def edit_config(directory: Path, **values) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def logits(opened: OpenedModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    samples = [
        Sample(
            torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator), text, "red", "x", text
        )
        for text in ("What color is the circle?", "Where?")
    ]
    batch = collate(
        samples, opened.tokenizer, query_tokens=QUERY_TOKENS, image_size=opened.image_size
    )
    with torch.no_grad():
        return opened.model.logits(batch)


def test_a_directory_in_transformers_format_gives_its_weights(base):
    opened = open_model(base)
    theirs = InstructBlipForConditionalGeneration.from_pretrained(base)
    for name, parameter in opened.model.named_parameters():
        assert torch.equal(parameter, theirs.state_dict()[name]), name
        assert not parameter.requires_grad
    assert not any(module.training for module in opened.model.modules())
    assert (opened.image_size, opened.recipe, opened.step) == (IMAGE_SIZE, None, None)
    assert opened.processor_directory == base


def test_buffers_that_are_not_stored_are_computed(base):
    opened = open_model(base)
    theirs = InstructBlipForConditionalGeneration.from_pretrained(base)
    rotary = opened.model.language_model.model.rotary_emb
    assert torch.equal(rotary.inv_freq, theirs.language_model.model.rotary_emb.inv_freq)
    assert torch.isfinite(logits(opened)).all()


def test_bf16_weights_keep_fp32_rotary_frequencies(base):
    opened = open_model(base, dtype=torch.bfloat16)
    assert {p.dtype for p in opened.model.parameters()} == {torch.bfloat16}
    assert opened.model.language_model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_tied_embeddings_stay_tied(base, tmp_path):
    tied = copied(base, tmp_path / "tied")
    text = json.loads((tied / "config.json").read_text())["text_config"]
    edit_config(tied, text_config=text | {"tie_word_embeddings": True})
    weights = weights_of(tied / SINGLE_NAME)
    del weights["language_model.lm_head.weight"]
    save_file(weights, tied / SINGLE_NAME, metadata={"format": "pt"})
    language = open_model(tied).model.language_model
    assert language.lm_head.weight is language.model.embed_tokens.weight


def test_a_run_is_its_base_overlaid_with_its_latest_step(base, tmp_path):
    run = tmp_path / "run"
    first = write_tiny_run(run, 3, base=base)
    second = write_tiny_run(run, 6, base=base)
    opened = open_model(run)
    assert opened.step == 6
    assert opened.recipe is not None
    assert opened.recipe.name == "tiny"
    assert opened.tokenizer.max_instruction_tokens == 24
    untouched = load_file(base / SINGLE_NAME)
    for name, parameter in opened.model.named_parameters():
        assert torch.equal(parameter, second.get(name, untouched.get(name))), name
    older = open_model(run / "checkpoints" / "step-00000003")
    assert older.step == 3
    name = "language_projection.weight"
    assert torch.equal(older.model.get_parameter(name), first[name])


def test_a_run_from_a_random_base(tmp_path, tiny_processor):
    random_base = tiny_architecture(**vocabularies(tiny_processor)) | {
        "processor": tiny_processor,
        "num_query_tokens": QUERY_TOKENS,
    }
    write_tiny_run(tmp_path / "run", random_base=random_base)
    opened = open_model(tmp_path / "run")
    assert opened.processor_directory == tiny_processor
    assert torch.isfinite(logits(opened)).all()


def test_the_ablation_of_a_run_has_no_text_weights(base, tmp_path):
    write_tiny_run(tmp_path / "run", base=base, instruction_aware=False)
    opened = open_model(tmp_path / "run")
    assert not opened.model.instruction_aware
    assert not any("word_embeddings" in name for name, _ in opened.model.named_parameters())


def test_config_may_say_that_instructions_are_not_read(base, tmp_path):
    unaware = copied(base, tmp_path / "unaware")
    edit_config(unaware, instruction_aware=False)
    assert not open_model(unaware).model.instruction_aware
    edit_config(unaware, instruction_aware="no")
    with pytest.raises(ValueError, match="write true or false"):
        open_model(unaware)


def test_blip2_names_are_mapped_back():
    for name in (
        "qformer.embeddings.layernorm.weight",
        "qformer.encoder.layer.0.attention.output.LayerNorm.bias",
        "query_tokens",
    ):
        assert from_blip2_name(to_blip2_name(name)) == name
    assert to_blip2_name("qformer.embeddings.layernorm.weight") == "qformer.layernorm.weight"


def test_what_is_no_model_is_said_so(tmp_path):
    with pytest.raises(ValueError, match="no such directory"):
        open_model(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="neither a run directory, nor a step"):
        open_model(tmp_path)
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        open_model(tmp_path)


def test_a_base_that_changed_is_refused(base, tmp_path):
    moved = copied(base, tmp_path / "moved")
    write_tiny_run(tmp_path / "run", base=moved)
    weights = weights_of(moved / SINGLE_NAME)
    name = "language_model.lm_head.weight"
    save_file(weights | {name: -weights[name]}, moved / SINGLE_NAME, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"trained on another base: the weights of base .*moved"):
        open_model(tmp_path / "run")
    save_file(weights, moved / SINGLE_NAME, metadata={"format": "pt"})
    open_model(tmp_path / "run")
    file = moved / "qformer_tokenizer/tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["another"] = vocabulary.pop(max(vocabulary, key=vocabulary.__getitem__))
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="trained on another base: the tokenizers of"):
        open_model(tmp_path / "run")


def test_a_recipe_is_its_base(base, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(tiny_recipe(tmp_path / "run", base=base)))
    opened, untouched = open_model(file), load_file(base / SINGLE_NAME)
    for name, parameter in opened.model.named_parameters():
        assert torch.equal(parameter, untouched[name]), name


def test_an_adapter_of_somebody_else_is_no_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="is an adapter that ibtrain did not export"):
        open_model(tmp_path)


def test_a_base_that_is_gone_is_named(base, tmp_path):
    moved = copied(base, tmp_path / "moved")
    write_tiny_run(tmp_path / "run", base=moved)
    moved.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"moved, which its recipe names \(model\.base\)"):
        open_model(tmp_path / "run")


def test_a_flipped_byte_is_found(base, tmp_path):
    write_tiny_run(tmp_path / "run", base=base)
    file = tmp_path / "run" / "checkpoints" / "step-00000003" / TRAINABLE
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="is not what was written"):
        open_model(tmp_path / "run")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"step": 3}, "holds no recipe"),
        ({"step": 3, "recipe": {"name": "x"}}, "cannot be used by this version of ibtrain"),
    ],
)
def test_a_step_without_a_usable_recipe(base, tmp_path, monkeypatch, state, message):
    write_tiny_run(tmp_path / "run", base=base)
    step = tmp_path / "run" / "checkpoints" / "step-00000003"
    (step / STATE).write_text(json.dumps(state))
    monkeypatch.setattr("ibtrain.pretrained.finding.verify_step", lambda directory: 3)
    with pytest.raises(ValueError, match=message):
        open_model(step)


def test_a_step_without_a_manifest(base, tmp_path):
    write_tiny_run(tmp_path / "run", base=base)
    step = tmp_path / "run" / "checkpoints" / "step-00000003"
    (step / MANIFEST).unlink()
    with pytest.raises(ValueError, match=r"MANIFEST\.json is missing"):
        open_model(step)


def test_a_tokenizer_larger_than_the_embeddings(base, tmp_path):
    small = copied(base, tmp_path / "small")
    text = json.loads((small / "config.json").read_text())["text_config"]
    edit_config(small, text_config=text | {"vocab_size": 100})
    with pytest.raises(ValueError, match="language tokenizer has"):
        open_model(small)


def test_missing_tokenizers_and_weights(base, tmp_path):
    directory = copied(base, tmp_path / "directory")
    (directory / "qformer_tokenizer" / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="has no tokenizer at"):
        open_model(directory)
    (directory / SINGLE_NAME).unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
        open_model(directory)


def test_an_instruction_longer_than_the_positions_loses_its_beginning(base):
    tokenizer = open_model(base).tokenizer
    ids = tokenizer.instruction("what " * 99 + "color is the circle?").qformer
    assert len(ids) == tokenizer.max_instruction_tokens == 64
    assert tokenizer.qformer.decode(ids, skip_special_tokens=True).endswith("color is the circle?")


def test_another_model_type_is_refused(base, tmp_path):
    other = copied(base, tmp_path / "other")
    edit_config(other, model_type="bert")
    with pytest.raises(ValueError, match="'bert'"):
        open_model(other)


def test_finding_reads_no_weights(base, monkeypatch):
    def refuse(self, name):
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr("ibtrain.pretrained.tensors.SafetensorsSource.get", refuse)
    found = find_model(base)
    assert len(found.sources) == len(load_file(base / SINGLE_NAME))
