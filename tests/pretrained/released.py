"""A tiny model taken apart into the files that the real ones are released in: LAVIS's state dicts,
EVA's tower, BERT, a language model's directory. Names follow transformers' conversion script
(`convert_instructblip_original_to_pytorch.py`), not the package's own mapping."""

from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from ibtrain.model.instructblip import InstructBlip
from tests.tiny import untie


def lavis_state_dict(model: InstructBlip) -> dict[str, torch.Tensor]:
    """Every weight under LAVIS's name, as the conversion script reads them."""
    state = model.state_dict()
    t5 = model.config.text_config.model_type == "t5"
    lavis: dict[str, torch.Tensor] = {"query_tokens": state["query_tokens"]}
    tower = "vision_model.embeddings."
    lavis["visual_encoder.cls_token"] = state[f"{tower}class_embedding"]
    lavis["visual_encoder.pos_embed"] = state[f"{tower}position_embedding"]
    for leaf in ("weight", "bias"):
        lavis[f"visual_encoder.patch_embed.proj.{leaf}"] = state[f"{tower}patch_embedding.{leaf}"]
        lavis[f"ln_vision.{leaf}"] = state[f"vision_model.post_layernorm.{leaf}"]
        for i in range(model.config.vision_config.num_hidden_layers):
            theirs, ours = f"visual_encoder.blocks.{i}", f"vision_model.encoder.layers.{i}"
            lavis[f"{theirs}.norm1.{leaf}"] = state[f"{ours}.layer_norm1.{leaf}"]
            lavis[f"{theirs}.norm2.{leaf}"] = state[f"{ours}.layer_norm2.{leaf}"]
            lavis[f"{theirs}.attn.proj.{leaf}"] = state[f"{ours}.self_attn.projection.{leaf}"]
            lavis[f"{theirs}.mlp.fc1.{leaf}"] = state[f"{ours}.mlp.fc1.{leaf}"]
            lavis[f"{theirs}.mlp.fc2.{leaf}"] = state[f"{ours}.mlp.fc2.{leaf}"]
        projection = "t5_proj" if t5 else "llm_proj"
        lavis[f"{projection}.{leaf}"] = state[f"language_projection.{leaf}"]
    for i in range(model.config.vision_config.num_hidden_layers):
        theirs, ours = f"visual_encoder.blocks.{i}.attn", f"vision_model.encoder.layers.{i}"
        lavis[f"{theirs}.qkv.weight"] = state[f"{ours}.self_attn.qkv.weight"]
        query, _, value = state[f"{ours}.self_attn.qkv.bias"].chunk(3)
        lavis[f"{theirs}.q_bias"], lavis[f"{theirs}.v_bias"] = query, value
    for name, tensor in state.items():
        if name.startswith("qformer."):
            theirs = name.replace("qformer.", "Qformer.bert.", 1)
            theirs = theirs.replace("attention.attention", "attention.self")
            lavis[theirs.replace("embeddings.layernorm", "embeddings.LayerNorm")] = tensor
        elif name.startswith("language_model."):
            if "embed_tokens" in name and t5:
                continue
            lavis[name.replace("language_model", "t5_model" if t5 else "llm_model", 1)] = tensor
    return {name: tensor.clone() for name, tensor in lavis.items()}


def without_key_bias(model: InstructBlip) -> InstructBlip:
    """The model with the vision tower's key biases at 0, as EVA has none."""
    for name, parameter in model.named_parameters():
        if name.endswith("self_attn.qkv.bias"):
            parameter.data.chunk(3)[1].zero_()
    return model


def trimmed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What LAVIS's released files hold."""
    kept = ("query_tokens", "Qformer.", "ln_vision.", "llm_proj.", "t5_proj.")
    return {name: tensor for name, tensor in state.items() if name.startswith(kept)}


def write_eva(state: dict[str, torch.Tensor], file: Path) -> Path:
    """The tower's own file, with one block more than is used, a norm and a head."""
    tower = {
        name.removeprefix("visual_encoder."): tensor
        for name, tensor in state.items()
        if name.startswith("visual_encoder.")
    }
    last = 1 + max(int(name.split(".")[1]) for name in tower if name.startswith("blocks."))
    surplus = {
        name.replace("blocks.0.", f"blocks.{last}."): tensor.clone()
        for name, tensor in tower.items()
        if name.startswith("blocks.0.")
    }
    width = tower["cls_token"].shape[-1]
    extra = {"norm.weight": torch.ones(width), "head.weight": torch.ones(3, width)}
    torch.save(tower | surplus | extra, file)
    return file


def write_language(model: InstructBlip, processor: Path, directory: Path, rows: int) -> Path:
    """The language model's directory: its first `rows` embeddings, and a tokenizer."""
    text = model.config.text_config
    values = text.to_dict() | {"vocab_size": rows}
    values.pop("_attn_implementation_autoset", None)
    if text.model_type == "t5":
        language = T5ForConditionalGeneration(T5Config(**values))
        untie(language)
    else:
        language = LlamaForCausalLM(LlamaConfig(**values))
    state = {
        name: tensor[:rows]
        if name.endswith(("embed_tokens.weight", "shared.weight", "lm_head.weight"))
        else tensor
        for name, tensor in model.language_model.state_dict().items()
    }
    language.load_state_dict(state)
    language.save_pretrained(directory)
    AutoTokenizer.from_pretrained(processor).save_pretrained(directory)
    return directory


def write_bert(model: InstructBlip, processor: Path, directory: Path, *, weights: bool) -> Path:
    """BERT: the Q-Former's tokenizer before [DEC], and random weights of its shapes."""
    tokenizer = AutoTokenizer.from_pretrained(processor / "qformer_tokenizer")
    tokenizer.save_pretrained(directory)
    if weights:
        own = model.config.qformer_config
        config = BertConfig(
            vocab_size=own.vocab_size - 1,
            hidden_size=own.hidden_size,
            num_hidden_layers=own.num_hidden_layers,
            num_attention_heads=own.num_attention_heads,
            intermediate_size=own.intermediate_size,
            max_position_embeddings=own.max_position_embeddings,
        )
        BertForMaskedLM(config).save_pretrained(directory)
    return directory
