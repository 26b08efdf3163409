import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ibtrain.cli import main
from ibtrain.config import Recipe, load_recipe
from ibtrain.data.images import CLIP_MEAN, CLIP_STD
from ibtrain.data.mixture.preview import write_preview
from ibtrain.data.mixture.preview_page import (
    ShownDataset,
    ShownSample,
    ShownText,
    page,
)
from ibtrain.data.mixture.sampling import draw_sample
from ibtrain.data.mixture.shares import resolve_mixture
from ibtrain.data.records import Answer
from ibtrain.data.shards.records import read_records
from ibtrain.pages import SHOWN_CHARACTERS
from tests.data.shard_directories import jpeg, record, write_shards
from tests.html_page import Page, assert_by_itself

HOSTILE = '</script></style><script>alert(1)</script><img src=x onerror="alert(2)">&quot;\x00\u202e'
QUESTIONS = tuple(f"Is it number {number}?" for number in range(12))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three datasets: questions, videos, and text alone that is hostile."""
    folder = tmp_path_factory.mktemp("shards")
    questions = [record(number, instructions=QUESTIONS) for number in range(60)]
    frames = tuple(jpeg(number, (40, 30)) for number in range(5))
    videos = [record(n, dataset="msvd_qa", images=frames) for n in range(20)]
    texts = [
        record(
            number,
            dataset=HOSTILE,
            id=HOSTILE + str(number),
            images=(),
            instructions=(HOSTILE,),
            answers=(Answer("a" * (SHOWN_CHARACTERS + 7)),),
        )
        for number in range(20)
    ]
    write_shards(folder / "vqav2", questions, shard_bytes=16_000)
    write_shards(folder / "msvd_qa", videos)
    write_shards(folder / "llava", texts)
    return folder


def recipe_file(shards: Path, directory: Path, **data: Any) -> Path:
    import yaml

    content = yaml.safe_load((Path("ibtrain/recipes/toy.yaml")).read_text())
    content |= {"name": "three <b>sets</b>", "root": str(directory)}
    content["data"] |= {
        "mixture": [
            {"dataset": name, "path": str(shards / name)} for name in ("vqav2", "msvd_qa", "llava")
        ],
        "image_size": 32,
        "augmentation": "crop_flip",
        "epoch_samples": 256,
    } | data
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def preview(recipe: Recipe, path: Path, **options: Any) -> Page:
    mixture = resolve_mixture(recipe.data, recipe.training.global_batch)
    write_preview(path, recipe, mixture, **options)
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_shows_what_training_would_draw(shards: Path, tmp_path: Path):
    recipe = load_recipe(str(recipe_file(shards, tmp_path)))
    shown = preview(recipe, tmp_path / "page.html", samples=4)
    records = {(r.dataset, r.id): r for r in read_records(shards / "vqav2")}
    ids = shown.ids[:4]
    assert len(shown.ids) == 12 and len(set(ids)) == 4
    images = shown.images()
    assert len(images) == 4 + 4 * 5 and {image.shape for image in images} == {(32, 32, 3)}
    for number, name in enumerate(ids):
        sample = draw_sample(records["vqav2", name], recipe, epoch=0)
        assert shown.drawn[2 * number : 2 * number + 2] == [sample.instruction, sample.answer]
        pixels = sample.pixels_ICHW[0].permute(1, 2, 0).numpy()
        levels = (pixels * np.array(CLIP_STD) + np.array(CLIP_MEAN)) * 255
        assert np.abs(levels - images[number]).mean() < 4  # JPEG's own error
    text = " ".join(shown.words)
    assert all(text.count(question) >= 4 for question in QUESTIONS)
    assert "9 other instructions" in text and "random crop, mirrored every other time" in text
    assert "text alone, no image" in text and "(7 more characters)" in text


def test_the_page_is_by_itself_and_hostile_texts_stay_texts(shards: Path, tmp_path: Path):
    recipe = load_recipe(str(recipe_file(shards, tmp_path)))
    shown = preview(recipe, tmp_path / "page.html")
    assert_by_itself(shown)
    text = "".join(shown.words)
    assert "<script>alert(1)</script>" in text and "three <b>sets</b>" in text
    assert "\x00" not in text and "\u202e" not in text


def test_the_chart_has_the_numbers_of_the_mixture(shards: Path, tmp_path: Path):
    recipe = load_recipe(str(recipe_file(shards, tmp_path)))
    mixture = resolve_mixture(recipe.data, recipe.training.global_batch)
    text = preview(recipe, tmp_path / "page.html") and (tmp_path / "page.html").read_text(
        encoding="utf-8"
    )
    widths = [float(w) for w in re.findall(r'<rect class="share"[^>]*width="([\d.]+)"', text)]
    by_size = [float(w) for w in re.findall(r'<rect class="size"[^>]*width="([\d.]+)"', text)]
    shares = [dataset.share for dataset in mixture.datasets]
    assert [width / widths[0] for width in widths] == pytest.approx(
        [share / shares[0] for share in shares], rel=1e-3
    )
    assert max(widths + by_size) == 100
    assert by_size[0] / by_size[1] == pytest.approx(3, rel=1e-3)
    for dataset in mixture.datasets:
        assert f"{dataset.share:.2%}" in text
        assert f"{dataset.samples_per_epoch / dataset.size:.2f} &times;" in text


def test_the_same_seed_gives_the_same_page_and_another_one_another(shards: Path, tmp_path: Path):
    recipe = load_recipe(str(recipe_file(shards, tmp_path)))
    for name, seed in (("a", None), ("b", recipe.seed), ("c", 99)):
        preview(recipe, tmp_path / name, seed=seed)
    first, again, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == again != other


@pytest.mark.parametrize(
    ("prompts", "drawn"),
    [("plain", "What is {}?"), ("identifier", "[image_question_answering: vqav2] What is {}?")],
)
def test_prompts_of_the_recipe_are_shown(shards: Path, tmp_path: Path, prompts: str, drawn: str):
    recipe = load_recipe(str(recipe_file(shards, tmp_path, prompts=prompts)))
    shown = preview(recipe, tmp_path / "page.html", samples=1)
    assert shown.drawn[0] == drawn.format(shown.ids[0])
    assert not any(question in shown.words for question in QUESTIONS)


def test_one_shard_is_opened_and_nothing_is_left(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import tempfile

    own = Path(shutil.copytree(shards, tmp_path / "own"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    recipe = load_recipe(str(recipe_file(own, tmp_path)))
    from ibtrain.data.mixture.shard_cache import ShardCache

    opened: list[tuple[str, int]] = []
    original = ShardCache.open

    def noted(self: ShardCache, number: int) -> Any:
        opened.append((str(self.index.directory), number))
        return original(self, number)

    monkeypatch.setattr(ShardCache, "open", noted)
    before = {path: path.stat().st_mtime_ns for path in own.rglob("*")}
    preview(recipe, tmp_path / "page.html", samples=10)
    assert len(set(opened)) == 3 and len({directory for directory, _ in opened}) == 3
    assert {path: path.stat().st_mtime_ns for path in own.rglob("*")} == before
    assert list((tmp_path / "temporary").iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["page.html", "recipe.yaml"]


def test_a_bad_shard_is_told_on_the_page(shards: Path, tmp_path: Path):
    own = Path(shutil.copytree(shards, tmp_path / "own"))
    recipe = load_recipe(str(recipe_file(own, tmp_path)))
    for path in (own / "msvd_qa").glob("shard.*"):
        path.write_bytes(bytes(path.stat().st_size))
    text = " ".join(preview(recipe, tmp_path / "page.html").words)
    assert "6 cannot be shown:" in text and "shard.00000.mds" in text


def test_a_page_is_written_whole_or_not_at_all(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import os

    recipe = load_recipe(str(recipe_file(shards, tmp_path)))
    path = tmp_path / "page.html"
    path.write_text("before")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        recipe_cached = recipe
        with pytest.raises(OSError, match="No space left"):
            preview(recipe_cached, path)
    assert path.read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.html", "recipe.yaml"]
    for wrong in (tmp_path / "none/page.html", tmp_path):
        with pytest.raises(ValueError, match="cannot be written to"):
            preview(recipe, wrong)
    for samples in (0, -1, 10**9):
        with pytest.raises(ValueError, match="1 to 500 can be shown"):
            preview(recipe, path, samples=samples)


def test_the_verb_writes_the_page_beside_its_table(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    recipe, target = recipe_file(shards, tmp_path), tmp_path / "page.html"
    arguments = ["data", "mixture", "--json", str(recipe), "--preview", str(target)]
    assert main([*arguments, "--samples", "2", "--seed", "5"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["preview"] == str(target) and len(document["datasets"]) == 3
    assert target.read_text(encoding="utf-8").count("<article>") == 6


def test_texts_without_answers_and_control_characters():
    sample = ShownSample("i\x1bd", "", (), "no image", (ShownText("\ud800 ok", True),), ())
    text = page("t", [("a", "b")], [ShownDataset("d", "", 1, 1.0, 10.0, (sample,))])
    assert "none is public" in text and "\x1b" not in text and "\ud800" not in text
    assert "10.0 &times;" in text
