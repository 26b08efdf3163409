"""Ranking by a tree of tokens beside computing everything again for each candidate, on the CPU.

    .venv/bin/python tools/bench_ranking.py [--candidates 1000] [--language llama] [--piece 256]

Times three ways of scoring the same candidates of one image and prompt, with random weights (time
does not depend on them), and compares their scores: all of image, prompt and candidate again for
each, in batches; the prompt's keys and values computed once and reused for padded batches of
candidates; and what `ibtrain rank` does, the tree. Exits with 1 where scores differ by more than
1e-4 or the tree is not ten times as fast as computing all again.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from PIL import Image
from transformers import (
    DynamicCache,
    InstructBlipConfig,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
    T5Config,
)

from ibtrain.data.mixture.collate import Sample, collate
from ibtrain.data.toy.tokenizers import write_processor
from ibtrain.evaluation.candidates import candidate_tokens
from ibtrain.evaluation.generation import pixels_of, prompt_rows
from ibtrain.evaluation.ranking import log_probabilities
from ibtrain.model.instructblip import InstructBlip
from ibtrain.pretrained.opening import OpenedModel
from ibtrain.tokenization import InstructionTokenizer

PROMPT = "Question: What is the person in the picture holding in the left hand? Short answer:"
WORDS = """
a an the red blue green small large old young man woman dog cat horse ball bat racket book cup phone
bag umbrella board skate surf snow kite plate fork knife spoon banana apple orange cake
"""
IMAGE_SIZE = 112
BATCH = 16


def candidates(count: int) -> list[str]:
    """Answers of one to five words, as those of a data set: many begin alike."""
    source = Random(0)
    made: dict[str, None] = {}
    while len(made) < count:
        made[" ".join(source.choices(WORDS.split(), k=source.choice((1, 2, 2, 3, 3, 4, 5))))] = None
    return list(made)


def build(language: str, directory: Path) -> OpenedModel:
    """A model of a size at which arithmetic counts (some 25 million weights), and tokenizers."""
    corpus = directory / "corpus.txt"
    corpus.write_text("\n".join([PROMPT, *candidates(300)]), encoding="utf-8")
    write_processor(corpus, directory / "processor", image_size=IMAGE_SIZE, num_query_tokens=32)
    tokenizer = InstructionTokenizer.from_directory(directory / "processor")
    words = len(tokenizer.language)
    text = (
        LlamaConfig(
            vocab_size=words,
            hidden_size=256,
            intermediate_size=688,
            num_hidden_layers=6,
            num_attention_heads=8,
            bos_token_id=2,
            eos_token_id=2,
            pad_token_id=0,
        )
        if language == "llama"
        else T5Config(
            vocab_size=words,
            d_model=256,
            d_kv=32,
            d_ff=688,
            num_layers=6,
            num_heads=8,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            decoder_start_token_id=0,
        )
    )
    vision = InstructBlipVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=6,
        image_size=IMAGE_SIZE,
        patch_size=14,
    )
    qformer = InstructBlipQFormerConfig(
        vocab_size=len(tokenizer.qformer),
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=6,
        encoder_hidden_size=192,
    )
    config = InstructBlipConfig(
        vision_config=vision.to_dict(),
        qformer_config=qformer.to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=32,
    )
    torch.manual_seed(0)
    model = InstructBlip(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(0, 0.05) if parameter.dim() > 1 else parameter.fill_(1.0)
    return OpenedModel(model, tokenizer, directory, IMAGE_SIZE, "random", None, None)


@torch.inference_mode()
def all_again(opened: OpenedModel, image: Image.Image, texts: list[str]) -> list[float]:
    """Image, prompt and candidate for each, packed in batches as in training."""
    pixels = pixels_of(image, IMAGE_SIZE)[None]
    scores = []
    for begin in range(0, len(texts), BATCH):
        own = texts[begin : begin + BATCH]
        samples = [Sample(pixels, PROMPT, text, "bench", text) for text in own]
        batch = collate(samples, opened.tokenizer, query_tokens=32, image_size=IMAGE_SIZE)
        losses = opened.model(batch)
        sums = torch.zeros(len(own)).index_add(0, batch.answer_sample_A, losses)
        scores += (-sums).tolist()
    return scores


@torch.inference_mode()
def reused_cache(opened: OpenedModel, image: Image.Image, texts: list[str]) -> list[float]:
    """The prompt once; candidates in padded batches beside copies of its keys and values."""
    language = opened.model.language_model
    rows, mask = prompt_rows(opened, [[image]], [PROMPT])
    known = language.model(inputs_embeds=rows, attention_mask=mask, use_cache=True)
    first = language.lm_head(known.last_hidden_state[:, -1]).float().log_softmax(-1)[0]
    length, scores = rows.shape[1], []
    sequences = [candidate_tokens(opened.tokenizer, text) for text in texts]
    for begin in range(0, len(sequences), 4 * BATCH):
        own = sequences[begin : begin + 4 * BATCH]
        longest = max(map(len, own))
        ids = torch.tensor([[*one, *[0] * (longest - len(one))] for one in own])
        cache = DynamicCache()
        for index, (keys, values) in enumerate(_layers(known.past_key_values)):
            cache.update(
                keys.expand(len(own), -1, -1, -1), values.expand(len(own), -1, -1, -1), index
            )
        out = language.model(
            input_ids=ids,
            attention_mask=torch.ones(len(own), length + longest, dtype=torch.long),
            position_ids=torch.arange(length, length + longest)[None],
            past_key_values=cache,
        )
        logprobs = language.lm_head(out.last_hidden_state).float().log_softmax(-1)
        for row, one in enumerate(own):
            following = torch.tensor([*one[1:], opened.tokenizer.end_id])
            later = logprobs[row, : len(one)].gather(-1, following[:, None]).sum()
            scores.append(float(first[one[0]] + later))
    return scores


def _layers(cache: DynamicCache) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(layer.keys, layer.values) for layer in cache.layers]


def main() -> int:
    """Runs the comparison and prints it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--language", choices=["llama", "t5"], default="llama")
    parser.add_argument("--piece", type=int, default=256)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    texts = candidates(arguments.candidates)
    image = Image.effect_noise((160, 120), 80).convert("RGB")
    with tempfile.TemporaryDirectory() as directory:
        opened = build(arguments.language, Path(directory))

    def tree(opened: OpenedModel, image: Image.Image, texts: list[str]) -> list[float]:
        (found,) = log_probabilities(opened, [[image]], [PROMPT], [texts], arguments.piece)
        return [found[text] for text in texts]

    ways: dict[str, Callable[[OpenedModel, Image.Image, list[str]], list[float]]] = {
        "all again": all_again,
        "tree": tree,
    }
    if arguments.language == "llama":
        ways["reused cache"] = reused_cache
    seconds, scores = {}, {}
    for name, way in ways.items():
        way(opened, image, texts[:8])  # warm
        began = time.perf_counter()
        scores[name] = way(opened, image, texts)
        seconds[name] = time.perf_counter() - began
    worst = max(
        abs(a - b) for name in ways for a, b in zip(scores["all again"], scores[name], strict=True)
    )
    times = seconds["all again"] / seconds["tree"]
    report = {"seconds": seconds, "times": times, "largest_difference": worst}
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        print(f"{len(texts)} candidates, {arguments.language}, {torch.get_num_threads()} threads")
        for name, taken in seconds.items():
            print(f"  {name:14}{taken:8.2f} s")
        print(f"  the tree is {times:.1f} times as fast; scores differ by {worst:.1e} at most")
    return 0 if times >= 10 and worst <= 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
