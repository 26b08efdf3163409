"""Both families of language models, frozen and with adapters, under ZeRO-1, 2 and 3."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch

from ibtrain.config import LoraSection
from ibtrain.model.instructblip import part_of
from ibtrain.model.lora import is_adapter
from ibtrain.model.weights import parameter_shapes, read_config
from tests.distributed.conftest import ROOT, Zygote
from tests.distributed.family_jobs import Case, plain_curve
from tests.tiny import write_tiny_base

pytestmark = pytest.mark.timeout(900)  # half a minute a group on two idle cores
FAMILIES, LANGUAGES = ("llama", "t5"), ("frozen", "lora")
SHARDINGS = ("zero1", "zero2", "partition-matrices")
GROUPS = list(product(FAMILIES, LANGUAGES))
JOBS = list(product(SHARDINGS, ("false", "true")))
LONG = {("zero2", "true"), ("partition-matrices", "false")}  # 50 steps, the others 20
QFORMER_LAYERS = 2
LARGEST_WHOLE = 80  # numbers; every matrix of these models has more, adapters too, no vector has
JOB = "tests.distributed.family_jobs:"


@pytest.fixture(scope="module")
def directory(tiny_processor: Path, tmp_path_factory) -> Path:
    """A base of each family, and a ZeRO-3 that partitions its matrices and no vector."""
    directory = tmp_path_factory.mktemp("families")
    for family in FAMILIES:
        sizes = {"vision_layers": 1, "qformer_layers": QFORMER_LAYERS}
        write_tiny_base(directory / family, tiny_processor, language=family, **sizes)
    sharding = json.loads((ROOT / "ds_configs/zero3.json").read_text())
    sharding["zero_optimization"]["stage3_param_persistence_threshold"] = LARGEST_WHOLE
    (directory / "partition-matrices.json").write_text(json.dumps(sharding))
    return directory


def cases_of(family: str, language: str) -> list[str]:
    return [
        ":".join((family, language, *job, "50" if job in LONG else "20", "all")) for job in JOBS
    ]


@pytest.fixture(scope="module", params=GROUPS, ids="-".join)
def group(request) -> tuple[str, str]:
    """A family, and what is trained of it."""
    return request.param


@pytest.fixture(scope="module")
def found(group, zygote: Zygote, directory: Path, tmp_path_factory) -> dict[str, dict]:
    """What two ranks found in every case of a group, from one start."""
    out = tmp_path_factory.mktemp("found")
    cases = cases_of(*group)
    ranks = zygote.start(2, JOB + "train", str(directory), str(out), *cases)
    assert ranks.wait(seconds=600) == [0, 0], ranks.output(0) + ranks.output(1)
    return {case: read(out, case) for case in cases}


def read(out: Path, case: str) -> dict:
    return json.loads((out / f"{case.replace(':', '-')}.json").read_text())


def test_the_loss_curve_is_that_of_one_process_without_deepspeed(group, found, directory):
    wanted = plain_curve(directory, Case(*group, "", False, steps=20, images="all"))
    for case, its in found.items():
        assert its["curve"][:20] == pytest.approx(wanted, rel=1e-4), case
    assert wanted[19] < 0.99 * wanted[3]  # it learns, so the curves could differ


def test_everything_trained_gets_a_gradient(found):
    """But the text feed-forward of the Q-Former's last layer: text rows end there, unread (in the
    released models as well, which train it all the same)."""
    unread = f"qformer.encoder.layer.{QFORMER_LAYERS - 1}."
    ends = ("intermediate.dense", "output.dense", "output.LayerNorm")
    unread_text = {f"{unread}{end}.{kind}" for end in ends for kind in ("weight", "bias")}
    for case, its in found.items():
        first, second = its["without_gradient"]
        # B is zero at first, so A has no gradient before the second step.
        assert {name for name in first if not name.endswith(".lora_A.weight")} == unread_text, case
        assert set(second) == unread_text, case


def test_nothing_frozen_changes_by_a_bit(found):
    assert max(len(its["curve"]) for its in found.values()) == 50
    for case, its in found.items():
        assert its["frozen"] > 30, case
        assert its["changed"] == [], case


def test_what_is_saved_is_whole(group, found, directory):
    """Adapters lie beside the Q-Former in the one file, every tensor in its full shape."""
    family, language = group
    lora = LoraSection(rank=3) if language == "lora" else None
    shapes = parameter_shapes(read_config(directory / family), True, lora)
    for case, its in found.items():
        saved = its["saved"]
        assert saved == {name: list(shapes[name]) for name in saved}, case
        assert all(torch.Size(shape).numel() > 0 for shape in saved.values()), case
        assert {name for name in saved if part_of(name) == "language"} == {
            name for name in shapes if is_adapter(name)
        }, case
        assert {"query_tokens", "language_projection.bias"} <= set(saved), case
        assert "vision_model.post_layernorm.weight" in saved, case


def test_a_rank_without_an_image_trains_on(zygote: Zygote, directory: Path, tmp_path: Path):
    """Every group within a minute together, or one hangs."""
    cases = [":".join((*group, "partition-matrices", "true", "3", "half")) for group in GROUPS]
    ranks = zygote.start(2, JOB + "train", str(directory), str(tmp_path), *cases)
    codes = ranks.wait(seconds=60)
    assert codes == [0, 0], "\n".join(ranks.output(rank) for rank in range(2))
    for case in cases:
        wanted = plain_curve(directory, Case.of(case))
        assert read(tmp_path, case)["curve"] == pytest.approx(wanted, rel=1e-4), case


def test_rotary_frequencies_stay_exact_in_bf16(zygote: Zygote, directory: Path, tmp_path: Path):
    shardings = ("zero2", "partition-matrices")
    zygote.run(2, JOB + "frequencies", str(directory), str(tmp_path), *shardings)
    width = 32 // 4
    wanted = [10000.0 ** (-index / width) for index in range(0, width, 2)]
    for sharding in shardings:
        its = json.loads((tmp_path / f"{sharding}.json").read_text())
        assert its["dtype"] == "torch.float32"
        assert its["values"] == pytest.approx(wanted, rel=1e-6)
