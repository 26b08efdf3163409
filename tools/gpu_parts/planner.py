"""What `ibtrain plan` says of the steps that are measured: memory, seconds, MFU's FLOPs."""

import ibtrain.torchvision_mend  # isort: skip
from attention_bench.machine import told_by
from gpu_parts.lengths import LONGEST
from gpu_parts.sheet import Job, Sheet, card
from gpu_parts.steps import MODELS, batches_of, recipe_of
from ibtrain.model.instructblip import InstructBlip
from ibtrain.planning.devices import device_named
from ibtrain.planning.dry_run import Lengths
from ibtrain.planning.plan import Cluster, make_plan

assert ibtrain.torchvision_mend and InstructBlip


def run(job: Job, sheet: Sheet) -> None:
    """A plan of each model on one such card, with samples as long as those that are timed."""
    with card(job, alone=False):
        name = "h100" if job.rehearse else _card_name()
    sheet.facts["device"] = device_named(name).name
    cluster = Cluster(1, 1, device_named(name))
    batches = batches_of(rehearse=False)
    samples = batches[0].samples
    count = samples * len(batches)
    typical = Lengths(
        round(sum(sum(each.instructions) for each in batches) / count),
        round(sum(sum(each.answers) for each in batches) / count),
    )
    sheet.facts |= {"samples": samples, "typical": vars(typical), "longest": LONGEST}
    for model in list(MODELS)[: 1 if job.rehearse else None]:
        recipe = recipe_of(model, "zero2", samples)
        for recompute in (True, False):
            section = recipe.model.model_copy(update={"gradient_checkpointing": recompute})
            plan = make_plan(recipe.model_copy(update={"model": section}), cluster, typical)
            for choice in plan.choices:
                sheet.add(
                    model=model,
                    recompute=recompute,
                    sharding=choice.sharding,
                    memory_bytes=choice.memory_bytes_per_gpu,
                    step_seconds=choice.step_seconds,
                    mfu=choice.mfu,
                    flops_per_sample=plan.flops_per_sample,
                )


def _card_name() -> str:
    """As the driver says it, without taking memory of a card on which others measure it."""
    return told_by("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
