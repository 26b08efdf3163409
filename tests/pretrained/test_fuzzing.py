"""Damaged files of a base: one sentence of ours that names the base, or a model that can be used.

Seeds change from run to run; a failure shows its own as the last that was printed. IBTRAIN_FUZZ
sets how many there are (`make fuzz`).
"""

import os
import shutil
import time
from pathlib import Path
from random import Random

import pytest

from ibtrain.pretrained.finding import find_model
from ibtrain.pretrained.opening import laid_out
from ibtrain.pretrained.processor import open_image_processor
from tests.data.mutations import mutate
from tests.tiny import write_tiny_base

FUZZ = max(60, int(os.environ.get("IBTRAIN_FUZZ", "0")) // 2)
FILES = (  # those with the most in them more often
    *("config.json",) * 4,
    *("tokenizer.json", "tokenizer_config.json") * 2,
    *("special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
    *("generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *(f"qformer_tokenizer/tokenizer{end}.json" for end in ("", "_config")),
    *("qformer_tokenizer/vocab.txt", "qformer_tokenizer/special_tokens_map.json"),
    "model.safetensors",
)
TEXTS = ("What color is the circle?", "", "naïve 漢字 </s> <image>\n" * 40)


@pytest.fixture(scope="module")
def bases(tmp_path_factory, tiny_processor) -> list[Path]:
    """A Llama's and a T5's."""
    folder = tmp_path_factory.mktemp("bases")
    return [
        write_tiny_base(folder / language, tiny_processor, language=language)
        for language in ("llama", "t5")
    ]


def use(base: Path) -> None:
    """What training and answering do with a base before they read the values of its weights."""
    found = find_model(base)
    for text in TEXTS:
        tokens = found.tokenizer.instruction(text)
        assert max(tokens.language, default=0) < found.config.text_config.vocab_size
        assert max(tokens.qformer, default=0) < found.config.qformer_config.vocab_size
        found.tokenizer.answer(text)
    laid_out(found)
    open_image_processor(base)


def test_damaged_bases_end_in_one_sentence(bases, tmp_path):
    start = Random().randrange(10**9)
    outcomes = set()
    for seed in range(start, start + FUZZ):
        random = Random(seed)
        base = tmp_path / "base"
        shutil.rmtree(base, ignore_errors=True)
        shutil.copytree(random.choice(bases), base)
        path = base / random.choice([name for name in FILES if (base / name).is_file()])
        mutation = mutate(path.read_bytes(), path.suffix, random)
        path.write_bytes(mutation.data)
        print(seed, path.name, mutation.done)
        begin = time.process_time()
        try:
            use(base)
            outcomes.add("used")
        except ValueError as error:
            said = str(error)
            assert str(base) in said and "\n" not in said and len(said) < 1000, said
            outcomes.add("refused")
        assert time.process_time() - begin < 10
    assert outcomes == {"used", "refused"}
