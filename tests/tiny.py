"""Models and tokenizers small enough for a test: a whole InstructBLIP of some ten thousand weights.

`tiny_architecture` gives the three sections as a recipe's `model.random_base` takes them,
`tiny_config` the same as a configuration, `tiny_model` the model with random weights, and
`transformers_twin` the same weights in transformers' own class.
"""

import ibtrain.torchvision_mend  # isort: skip
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
    T5Config,
)

from ibtrain.data.toy.tokenizers import write_processor
from ibtrain.model.instructblip import InstructBlip
from ibtrain.pretrained.tensors import RandomSource
from ibtrain.tokenization import InstructionTokens

assert ibtrain.torchvision_mend

IMAGE_SIZE = 16
QUERY_TOKENS = 3
IMAGE_TOKEN = 95  # of tiny_config's default vocabulary, for transformers' place-holders

CORPUS = """\
What color is the circle? red
What color is the square? blue
What shape is the green object? triangle
How many objects are there? 2
How many crosses are there? 0
Is there a yellow triangle? yes
Is there a purple circle? no
Where is the white cross? top left
Where is the red square? bottom right
Question: What word is written? Short answer: cat
A short image caption: a red circle at the top left and a blue square at the bottom right
A photo of a green triangle, a white cross and the word dog
Write a description of the image. There is a yellow square at the top right.
"""


def tiny_architecture(
    *,
    language: str = "llama",
    language_vocabulary: int = 96,
    qformer_vocabulary: int = 64,
    image_size: int = IMAGE_SIZE,
    patch_size: int = 8,
    vision_width: int = 24,
    vision_heads: int = 2,
    vision_layers: int = 2,
    qformer_width: int = 20,
    qformer_heads: int = 2,
    qformer_layers: int = 3,
    qformer_positions: int = 64,
    language_width: int = 32,
    language_heads: int = 4,
    language_key_heads: int = 4,
    language_layers: int = 2,
    decoder_layers: int | None = None,
    dropout: float = 0.0,
) -> dict[str, dict[str, Any]]:
    """The sections `vision`, `qformer` and `language` of a recipe's `model.random_base`.

    `language` is llama or t5; `language_key_heads` is a Llama's alone, `decoder_layers` a T5's.
    """
    llama = {
        "vocab_size": language_vocabulary,
        "hidden_size": language_width,
        "intermediate_size": 2 * language_width + 5,
        "num_hidden_layers": language_layers,
        "num_attention_heads": language_heads,
        "num_key_value_heads": language_key_heads,
        "max_position_embeddings": 512,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    # As Flan-T5: gated exact GELU, two embeddings, heads that are not a share of the width.
    t5 = {
        "model_type": "t5",
        "vocab_size": language_vocabulary,
        "d_model": language_width,
        "d_kv": 7,
        "d_ff": 2 * language_width + 5,
        "num_layers": language_layers,
        "num_decoder_layers": decoder_layers or language_layers,
        "num_heads": language_heads,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 9,
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu",
        "tie_word_embeddings": False,
        "dropout_rate": dropout,
        "decoder_start_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    return {
        "vision": {
            "hidden_size": vision_width,
            "intermediate_size": 2 * vision_width + 1,
            "num_hidden_layers": vision_layers,
            "num_attention_heads": vision_heads,
            "image_size": image_size,
            "patch_size": patch_size,
        },
        "qformer": {
            "vocab_size": qformer_vocabulary,
            "hidden_size": qformer_width,
            "intermediate_size": 2 * qformer_width + 3,
            "num_hidden_layers": qformer_layers,
            "num_attention_heads": qformer_heads,
            "max_position_embeddings": qformer_positions,
            "encoder_hidden_size": vision_width,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
        },
        "language": {"llama": llama, "t5": t5}[language],
    }


def tiny_config(*, query_tokens: int = QUERY_TOKENS, **sizes: Any) -> InstructBlipConfig:
    """The configuration of `tiny_architecture(**sizes)`; the last token id is the image token."""
    sections = tiny_architecture(**sizes)
    kind = T5Config if sections["language"].pop("model_type", "llama") == "t5" else LlamaConfig
    return InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(**sections["vision"]).to_dict(),
        qformer_config=InstructBlipQFormerConfig(**sections["qformer"]).to_dict(),
        text_config=kind(**sections["language"]).to_dict(),
        num_query_tokens=query_tokens,
        image_token_index=sections["language"]["vocab_size"] - 1,
    )


def tiny_model(
    config: InstructBlipConfig,
    *,
    seed: int = 0,
    deviation: float = 0.2,
    instruction_aware: bool = True,
    biases: bool = True,
    dtype: torch.dtype = torch.float32,
) -> InstructBlip:
    """An InstructBLIP in evaluation mode with random weights and, with `biases`, random biases and
    norm weights as well (RandomSource leaves them at 0 and 1, where mistakes hide)."""
    model = InstructBlip(config, instruction_aware)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    source = RandomSource(shapes, seed, deviation)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(source.get(name))
            if biases and (name.endswith(".bias") or parameter.dim() == 1):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.to(dtype).eval()


def transformers_twin(model: InstructBlip) -> InstructBlipForConditionalGeneration:
    """transformers' own InstructBLIP with the same weights, in evaluation mode."""
    twin = InstructBlipForConditionalGeneration(
        InstructBlipConfig.from_dict(model.config.to_dict())
    )
    untie(twin.language_model)
    twin.load_state_dict(model.state_dict(), strict=True)
    return twin.to(next(model.parameters()).dtype).eval()


def untie(language_model: nn.Module) -> None:
    """Gives a Flan-T5 its second embedding: transformers 5 makes one tensor of the two until
    weights that differ are loaded by `from_pretrained`."""
    shared = getattr(language_model, "shared", None)
    if shared is not None and language_model.lm_head.weight is shared.weight:
        language_model.lm_head = nn.Linear(*shared.weight.shape[::-1], bias=False)


def weights_of(file: Path) -> dict[str, torch.Tensor]:
    """A safetensors file's tensors, which stay when the file is written again (older releases map
    it)."""
    return {name: tensor.clone() for name, tensor in load_file(file).items()}


class IdTokenizer:
    """Stands in for InstructionTokenizer where ids are to be known: an instruction is written as
    its language ids, a bar, its Q-Former ids ("5 6 | 7 8"), an answer as its ids ("9 10")."""

    end_id = 2

    def instruction(self, text: str) -> InstructionTokens:
        language, _, qformer = text.partition("|")
        return InstructionTokens(
            qformer=tuple(map(int, qformer.split())), language=tuple(map(int, language.split()))
        )

    def answer(self, text: str) -> tuple[int, ...]:
        return (*map(int, text.split()), self.end_id)


def write_tiny_processor(
    directory: Path, *, image_size: int = IMAGE_SIZE, query_tokens: int = QUERY_TOKENS
) -> Path:
    """Trains both tokenizers on CORPUS and writes a processor directory; returns it."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    corpus = directory.with_name(f"{directory.name}-corpus.txt")
    corpus.write_text(CORPUS, encoding="utf-8")
    write_processor(corpus, directory, image_size=image_size, num_query_tokens=query_tokens)
    return directory


def vocabularies(processor: Path) -> dict[str, int]:
    """The sizes of a processor directory's tokenizers, as `tiny_architecture` takes them."""
    opened = InstructBlipProcessor.from_pretrained(processor, local_files_only=True)
    return {
        "language_vocabulary": len(opened.tokenizer),
        "qformer_vocabulary": len(opened.qformer_tokenizer),
    }


def write_tiny_base(directory: Path, processor: Path, *, seed: int = 0, **sizes: Any) -> Path:
    """A base directory in transformers' InstructBLIP format: config, weights, tokenizers."""
    config = tiny_config(**vocabularies(processor), **sizes)
    transformers_twin(tiny_model(config, seed=seed)).save_pretrained(directory)
    InstructBlipProcessor.from_pretrained(processor, local_files_only=True).save_pretrained(
        directory
    )
    return directory
