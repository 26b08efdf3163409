"""Configurations as they are found in public: written by releases from 4.27 on, with fields that
mean nothing here, none of which is a reason to refuse a base.

configurations/ holds what three releases of transformers write of the published sizes
(`InstructBlipConfig.from_vision_qformer_text_configs(...).save_pretrained`, likewise Blip2Config).
"""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import InstructBlipConfig

from ibtrain.model.t5 import ties_embeddings
from ibtrain.pretrained.base import directory_config
from ibtrain.pretrained.configuration import check_vocabularies, open_config, read_config
from ibtrain.pretrained.fit import parameter_shapes
from ibtrain.pretrained.published import published_config
from ibtrain.pretrained.releases import rope_of
from tests.tiny import tiny_config

FILES = sorted(Path(__file__).with_name("configurations").glob("*.json"))
# Of a Q-Former's section in a public dump of what transformers 4.27 wrote of BLIP-2.
GENERATION_OF_4_27: dict[str, Any] = {
    "_name_or_path": "",
    "add_cross_attention": False,
    "architectures": None,
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "bos_token_id": None,
    "chunk_size_feed_forward": 0,
    "classifier_dropout": None,
    "cross_attention_hidden_size": None,
    "decoder_start_token_id": None,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "finetuning_task": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_decoder": False,
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "position_embedding_type": "absolute",
    "prefix": None,
    "problem_type": None,
    "pruned_heads": {},
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "return_dict": True,
    "return_dict_in_generate": False,
    "sep_token_id": None,
    "suppress_tokens": None,
    "task_specific_params": None,
    "temperature": 1.0,
    "tf_legacy_loss": False,
    "tie_encoder_decoder": False,
    "tie_word_embeddings": True,
    "tokenizer_class": None,
    "top_k": 50,
    "top_p": 1.0,
    "torch_dtype": None,
    "torchscript": False,
    "transformers_version": "4.27.0.dev0",
    "typical_p": 1.0,
    "use_bfloat16": False,
}
# Salesforce/blip2-flan-t5-xl since its update of November 2024 (4.47.0.dev0).
BLIP2_FLAN_T5_XL: dict[str, Any] = {
    "architectures": ["Blip2ForConditionalGeneration"],
    "image_text_hidden_size": 256,
    "image_token_index": 32100,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "model_type": "blip-2",
    "num_query_tokens": 32,
    "qformer_config": {"classifier_dropout": None, "model_type": "blip_2_qformer"},
    "text_config": {
        "architectures": ["T5ForConditionalGeneration"],
        "bos_token_id": 1,
        "classifier_dropout": 0.0,
        "d_ff": 5120,
        "d_kv": 64,
        "d_model": 2048,
        "decoder_start_token_id": 0,
        "dense_act_fn": "gelu",
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "is_gated_act": True,
        "layer_norm_epsilon": 1e-06,
        "model_type": "t5",
        "n_positions": 512,
        "num_decoder_layers": 24,
        "num_heads": 32,
        "num_layers": 24,
        "output_past": True,
        "pad_token_id": 0,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": 32,
        "task_specific_params": {"summarization": {"early_stopping": True, "num_beams": 4}},
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vocab_size": 32128,
    },
    "torch_dtype": "float32",
    "transformers_version": "4.47.0.dev0",
    "use_decoder_only_language_model": False,
    "vision_config": {
        "dropout": 0.0,
        "initializer_factor": 1.0,
        "model_type": "blip_2_vision_model",
        "num_channels": 3,
        "projection_dim": 512,
    },
}
# InternVL's chinese_alpaca_lora_7b, written by 4.28, with the ids of lmsys/vicuna-7b-v1.1 (LAVIS
# #509), whose padding is none.
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "max_sequence_length": 2048,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "pad_token_id": -1,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.28.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}


def written(directory: Path, config: dict[str, Any]) -> Path:
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def assert_published_sizes(config: Any, *, qformer_rows: int) -> None:
    """The tower and the Q-Former as they were released."""
    vision, qformer = config.vision_config, config.qformer_config
    wanted = published_config("flan-t5-xl")
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "patch_size"):
        assert getattr(vision, key) == getattr(wanted.vision_config, key), key
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "encoder_hidden_size"):
        assert getattr(qformer, key) == getattr(wanted.qformer_config, key), key
    assert (qformer.vocab_size, qformer.max_position_embeddings) == (qformer_rows, 512)
    assert config.num_query_tokens == 32


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_earlier_releases_wrote(file, tmp_path):
    config = directory_config(written(tmp_path, json.loads(file.read_text())))
    rows = 30522 if file.stem.startswith("blip2") else 30523
    assert_published_sizes(config, qformer_rows=rows)
    text = config.text_config
    if "llama" in file.stem:
        assert (text.vocab_size, text.hidden_size, text.num_key_value_heads) == (32001, 4096, 32)
        assert rope_of(text) == {"rope_type": "default", "rope_theta": 10000.0}
        assert text.tie_word_embeddings is False
    else:
        assert (text.vocab_size, text.d_ff, text.dense_act_fn) == (32128, 5120, "gelu")
        assert not ties_embeddings(text)


def test_the_generation_settings_of_every_section_are_passed_over(tmp_path):
    config = json.loads(FILES[-1].read_text())
    config |= {"_commit_hash": None, "image_token_index": 32000, "video_token_index": 32001}
    for section in ("vision_config", "qformer_config", "text_config"):
        config[section] = GENERATION_OF_4_27 | config[section]
    assert_published_sizes(directory_config(written(tmp_path, config)), qformer_rows=30523)


def test_the_released_blip2_of_flan_t5(tmp_path):
    config = directory_config(written(tmp_path, BLIP2_FLAN_T5_XL))
    assert_published_sizes(config, qformer_rows=30522)
    assert (config.image_token_index, config.text_config.d_model) == (32100, 2048)
    assert not ties_embeddings(config.text_config)


def test_a_language_model_without_a_padding_id(tmp_path):
    config = open_config(written(tmp_path, LLAMA))
    assert (config.num_key_value_heads, config.vocab_size) == (32, 32000)
    assert rope_of(config) == {"rope_type": "default", "rope_theta": 10000.0}


def test_read_config(tmp_path):
    tiny_config(vision_width=48).save_pretrained(tmp_path)
    config = read_config(tmp_path)
    assert isinstance(config, InstructBlipConfig)
    assert config.vision_config.hidden_size == 48
    assert config.text_config.model_type == "llama"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", r"config\.json is not (a JSON object|JSON)"),
        ("[1]", r"config\.json is not (a JSON object|JSON)"),
        ('{"model_type": "blip-2"}', "is of model type 'blip-2'; an 'instructblip' is wanted"),
        ("{}", "is of model type None"),
        ("\udc80", r"config\.json is not (a JSON object|JSON)"),
    ],
)
def test_a_config_of_something_else(tmp_path, text, said):
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=said):
        read_config(tmp_path)


def test_a_directory_without_config(tmp_path):
    with pytest.raises(ValueError, match=r"is not a model: it has no config\.json"):
        read_config(tmp_path)
    with pytest.raises(ValueError, match="absent is not a model: there is no such directory"):
        read_config(tmp_path / "absent")


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("text_config", {"model_type": "nonesuch"}, r"text_config is no configuration .*nonesuch"),
        (
            "text_config",
            {"hidden_act": "nonesuch"},
            r"no model can be built of .*config\.json: Key",
        ),
        # transformers 5 looks at these while it opens the configuration.
        ("text_config", {"hidden_size": "wide"}, "hidden_size is 'wide'; a whole number is wanted"),
        ("text_config", {"num_attention_heads": 0}, r"config\.json(: | is no .*\()ZeroDivision"),
        ("vision_config", {"patch_size": 0}, "no model can be built of .*: ZeroDivision"),
        ("vision_config", {"num_attention_heads": 5}, "heads is 5, which does not divide .*24"),
        ("qformer_config", {"num_attention_heads": 0}, "heads is 0, which does not divide .*20"),
    ],
)
def test_a_config_of_which_no_model_can_be_built(tmp_path, part, changes, said):
    tiny_config().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    values[part] |= changes
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=said):
        parameter_shapes(read_config(tmp_path))


def test_a_config_nested_without_end(tmp_path):
    (tmp_path / "config.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match="is not JSON"):
        read_config(tmp_path)


def test_vocabularies_that_fit():
    check_vocabularies(tiny_config(), 96, 64, "base")
    check_vocabularies(tiny_config(), 90, 60, "base")  # embeddings are often rounded up


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((97, 64), "base: the language tokenizer has 97 tokens .* 96 rows"),
        ((96, 65), "base: the Q-Former tokenizer has 65 tokens .* 64 rows"),
    ],
)
def test_vocabularies_that_do_not_fit(sizes, said):
    with pytest.raises(ValueError, match=said):
        check_vocabularies(tiny_config(), *sizes, "base")
