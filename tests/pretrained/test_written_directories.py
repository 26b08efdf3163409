"""Directories that releases of transformers wrote (see written/), opened by the installed one: the
tokens and logits that the writing release's own model gave.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import InstructBlipForConditionalGeneration, InstructBlipProcessor

from ibtrain.data.mixture.collate import Sample, collate
from ibtrain.pretrained.opening import open_model
from tests.pretrained.write_directories import (
    MODELS,
    QUERY_TOKENS,
    TEXTS,
    WRITTEN,
    pixels,
    their_logits,
    tokens,
)

RELEASES = sorted(path.name for path in WRITTEN.iterdir() if path.is_dir())


def expected(release: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((WRITTEN / release / "expected.json").read_text())
    return found


def whole(release: str, model: str, target: Path) -> Path:
    """A model with its processor, as one directory."""
    shutil.copytree(WRITTEN / release / "processor", target)
    shutil.copytree(WRITTEN / release / model, target, dirs_exist_ok=True)
    return target


def our_logits(directory: Path) -> torch.Tensor:
    opened = open_model(directory)
    sample = Sample(pixels(), TEXTS[0], "", "x", "0")
    batch = collate([sample], opened.tokenizer, query_tokens=QUERY_TOKENS, image_size=16)
    with torch.no_grad():
        return opened.model.logits(batch)[0]


def test_both_ends_of_the_releases_are_here():
    assert {release.split(".")[0] for release in RELEASES} == {"4", "5"}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("release", RELEASES)
def test_logits_are_those_of_the_release_that_wrote_it(release, model, tmp_path):
    logits = our_logits(whole(release, model, tmp_path / "model"))
    wanted = torch.tensor(expected(release)["logits"][model])
    assert_close(logits, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("release", RELEASES)
def test_tokens_are_those_of_the_release_that_wrote_it(release, tmp_path):
    tokenizer = open_model(whole(release, "llama", tmp_path / "model")).tokenizer
    for text, wanted in expected(release)["tokens"].items():
        found = tokenizer.instruction(text)
        assert list(found.language) == wanted["language"], text
        assert list(found.qformer) == wanted["qformer"], text


@pytest.mark.parametrize("release", RELEASES)
def test_an_export_made_with_one_release_is_opened_by_the_other(release):
    """By ibtrain, and by the installed transformers alone."""
    directory, wanted = WRITTEN / release / "export", expected(release)
    logits = torch.tensor(wanted["logits"]["llama"])
    assert_close(our_logits(directory), logits, rtol=1e-4, atol=1e-5)
    processor = InstructBlipProcessor.from_pretrained(directory)
    model = InstructBlipForConditionalGeneration.from_pretrained(directory)
    theirs = torch.tensor(their_logits(model, processor, TEXTS[0]))
    assert_close(theirs, logits, rtol=1e-4, atol=1e-5)
    for text in TEXTS:
        assert tokens(processor, text) == wanted["tokens"][text], text
