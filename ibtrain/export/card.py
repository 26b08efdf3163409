"""The model card of an export: README.md with the fields that the Hugging Face hub reads.

A card says what is known and no more. The hub refuses a base or a dataset that is not of the form
of its names, so paths of this machine never stand in the fields.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from ibtrain import __version__
from ibtrain.config import Recipe
from ibtrain.files import FileError
from ibtrain.pretrained.found import FoundModel
from ibtrain.report.samples import Benchmark, Evaluation, read_evaluation

CARD = "README.md"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
_DATASET = re.compile(r"[A-Za-z0-9][\w.-]{0,95}")
_LICENSE_FIELDS = ("license", "license_name", "license_link")
_UNKNOWN_LICENSE = {"license": "other", "license_name": "not-stated"}
_LARGEST_CARD = 1 << 20
_TAGS = {"instructblip": "instructblip", "blip-2": "blip-2", "peft": "lora", "lavis": "lavis"}
_LIBRARIES = {"instructblip": "transformers", "blip-2": "transformers", "peft": "peft"}


def write_card(
    found: FoundModel, directory: Path, kind: str, proof: dict[str, Any], evaluation: Path | None
) -> None:
    """Writes the card into an export.

    Args:
        found: the model.
        directory: the export.
        kind: its format: instructblip, blip-2, peft or lavis.
        proof: what was proven of it.
        evaluation: a directory that `ibtrain evaluate` wrote, whose scores are the model's.

    Raises:
        FileError: the evaluation cannot be read.
        OSError: the file system cannot take it.
    """
    scores = () if evaluation is None else read_scores(evaluation, found.step)
    name = directory_name(found)
    fields = _fields(found, kind, name, scores)
    body = _body(found, kind, name, proof, scores, "license" in _base_license(found))
    text = f"---\n{fields.to_yaml()}\n---\n\n{body}"
    (directory / CARD).write_text(text, encoding="utf-8")


def read_scores(evaluation: Path, step: int | None = None) -> tuple[Benchmark, ...]:
    """The scores of an evaluation.

    Raises:
        FileError: it is none, holds no score, or tells that it is of another step.
    """
    read: Evaluation = read_evaluation(evaluation)
    if None not in (step, read.step) and step != read.step:
        raise FileError(
            f"{evaluation} is of step {read.step}, and the model of step {step}; give the "
            "evaluation of this step"
        )
    scores = tuple(one for one in read.benchmarks if one.value is not None)
    if not scores:
        raise FileError(
            read.trouble
            or f"{evaluation} holds no score; give a directory that `ibtrain evaluate` wrote"
        )
    return scores


def check_evaluation(found: FoundModel, evaluation: Path | None) -> None:
    """Refuses an evaluation of something else before anything is written.

    Raises:
        FileError: see `read_scores`.
    """
    if evaluation is not None:
        read_scores(evaluation, found.step)


def directory_name(found: FoundModel) -> str:
    """What the model is called: its recipe's name, with the step."""
    name = "InstructBLIP" if found.recipe is None else found.recipe.name
    return name if found.step is None else f"{name}, step {found.step}"


def hub_name(path: Path | None) -> str | None:
    """The name on the hub of a base: as it stands in the recipe, or of a directory in the hub's
    cache; None for any other directory.
    """
    if path is None:
        return None
    for part in (*path.parts, *(path.resolve().parts if path.exists() else ())):
        cached = _CACHED.fullmatch(part)
        if cached is not None:
            return f"{cached[1]}/{cached[2]}"
    return str(path) if _HUB_NAME.fullmatch(str(path)) and not path.exists() else None


def base_names(recipe: Recipe | None) -> list[str]:
    """The bases of a recipe that have names on the hub."""
    if recipe is None:
        return []
    section = recipe.model
    paths = [section.base]
    if section.parts is not None:
        paths += [section.parts.language, section.parts.stage2, section.parts.instructblip]
    return list(dict.fromkeys(name for path in paths if (name := hub_name(path)) is not None))


def _fields(found: FoundModel, kind: str, name: str, scores: Sequence[Benchmark]) -> ModelCardData:
    bases = base_names(found.recipe)
    datasets = [] if found.recipe is None else [e.dataset for e in found.recipe.data.mixture]
    license_fields: dict[str, Any] = {**(_base_license(found) or _UNKNOWN_LICENSE)}
    results = [
        EvalResult(
            task_type="image-text-to-text",
            dataset_type=score.name,
            dataset_name=score.name,
            metric_type=score.metric.lower().replace(" ", "_"),
            metric_name=score.metric,
            metric_value=score.value,
        )
        for score in scores
    ]
    adapter = kind == "peft"
    return ModelCardData(
        **license_fields,
        language="en",
        library_name=_LIBRARIES.get(kind),
        pipeline_tag="image-text-to-text",
        base_model=(bases[0] if len(bases) == 1 else bases) or None,
        base_model_relation=("adapter" if adapter else "finetune") if bases else None,
        datasets=[one for one in datasets if _DATASET.fullmatch(one)] or None,
        tags=["ibtrain", "visual-instruction-tuning", _TAGS[kind]],
        model_name=name,
        eval_results=results or None,
    )


def _base_license(found: FoundModel) -> dict[str, str]:
    """The licence fields of the card that lies in the base's directory, if one does."""
    card = found.processor_directory / CARD
    try:
        if not card.is_file() or card.stat().st_size > _LARGEST_CARD:
            return {}
        match = re.match(r"---\s*\n(.*?)\n---\s*\n", card.read_text(errors="replace"), re.DOTALL)
        fields = yaml.safe_load(match[1]) if match else None
    except (OSError, ValueError, TypeError, LookupError, AttributeError, yaml.YAMLError):
        return {}
    if not isinstance(fields, dict) or not isinstance(fields.get("license"), str):
        return {}
    if fields.get("license_name") == _UNKNOWN_LICENSE["license_name"]:
        return {}
    return {key: fields[key] for key in _LICENSE_FIELDS if isinstance(fields.get(key), str)}


def _body(
    found: FoundModel,
    kind: str,
    name: str,
    proof: dict[str, Any],
    scores: Sequence[Benchmark],
    licensed: bool,
) -> str:
    parts = [
        f"# {_plain(name)}\n",
        _what_it_is(found, kind),
        "## Use\n",
        _USE[kind],
    ]
    if scores:
        rows = [
            f"| {_plain(s.name)} | {_plain(s.metric)} | {s.value:.2%} | {s.interval} | {s.n} |"
            for s in scores
            if s.value is not None
        ]
        head = "| benchmark | metric | value | 95 % interval | questions |\n|---|---|---|---|---|"
        parts += ["## Scores\n", "\n".join([head, *rows, ""])]
    if found.recipe is not None:
        parts += ["## Training\n", _training(found.recipe)]
    parts += ["## Licence\n", _CARRIED if licensed else _NOT_STATED]
    error = proof.get("max_abs_logit_error")
    if isinstance(error, float):
        parts.append(
            f"Written by ibtrain {__version__} and opened again: the largest difference of a logit "
            f"from the trained model's is {error:.1e}.\n"
        )
    return "\n".join(parts)


def _what_it_is(found: FoundModel, kind: str) -> str:
    language = found.config.text_config
    reads = (
        "a Q-Former that reads the instruction"
        if found.instruction_aware
        else "a Q-Former that does not read the instruction"
    )
    kept = {
        "peft": "This repository holds the adapters of the language model, and in "
        "`trained.safetensors` what was trained besides; the base is needed to use them.",
        "lavis": "This repository holds what was trained, in the form that LAVIS loads "
        "(`model.finetuned` of its configuration).",
    }.get(kind, "")
    return (
        f"InstructBLIP (arXiv:2305.06500): a vision tower, {reads}, a projection, and a language "
        f"model of the {language.model_type} family, "
        f"{found.config.num_query_tokens} visual tokens for each image. {kept}".rstrip()
        + "\n"
    )


def _training(recipe: Recipe) -> str:
    training, model = recipe.training, recipe.model
    trained = [
        f"{part} ({how})" for part, how in model.train_parts.model_dump().items() if how != "frozen"
    ]
    facts = {
        "trained": ", ".join(trained),
        "steps planned": f"{training.steps:,}",
        "samples a step": f"{training.global_batch:,}",
        "learning rate": f"{training.learning_rate:g}, {training.warmup_steps:,} steps of warm-up",
        "weight decay": f"{training.weight_decay:g}",
        "precision": model.precision,
        "balance of the datasets": recipe.data.balance,
        "prompts": recipe.data.prompts,
        "seed": str(recipe.seed),
    }
    if model.lora is not None:
        facts["LoRA"] = f"rank {model.lora.rank}, alpha {model.lora.alpha:g}"
    lines = [f"- {key}: {value}" for key, value in facts.items()]
    names = [f"{_plain(entry.dataset)}" for entry in recipe.data.mixture]
    return "\n".join([*lines, f"- datasets: {', '.join(names)}", "", _RECIPE])


def _plain(name: str) -> str:
    """A name as Markdown: on one line, with nothing that Markdown or HTML would act on."""
    return re.sub(r"([\\`*_\[\]<>|#&])", r"\\\1", " ".join(name.split()))[:200]


_RECIPE = "All else stands in `recipe.yaml`, with which the run can be repeated.\n"
_CARRIED = (
    "The licence is the one that the base's own model card names; the data have licences of their "
    "own.\n"
)
_NOT_STATED = (
    "Not stated: the base came without a model card. Set `license` in the head of this file to "
    "what the base's and the data's licences allow before you publish it.\n"
)
_TRANSFORMERS = """```python
from PIL import Image
from transformers import {model}, {processor}

model = {model}.from_pretrained("PATH")
processor = {processor}.from_pretrained("PATH")
image = Image.open("picture.jpg").convert("RGB")
inputs = processor(images=image, text="What is in the picture?", return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens=30)
print(processor.batch_decode(answer, skip_special_tokens=True)[0])
```
"""
_IBTRAIN = """```python
from ibtrain import InstructBlip

print(InstructBlip.load("PATH").ask("picture.jpg", "What is in the picture?"))
```
"""
_USE = {
    "instructblip": _TRANSFORMERS.format(
        model="InstructBlipForConditionalGeneration", processor="InstructBlipProcessor"
    ),
    "blip-2": _TRANSFORMERS.format(
        model="Blip2ForConditionalGeneration", processor="Blip2Processor"
    ),
    "peft": _IBTRAIN,
    "lavis": _IBTRAIN,
}
