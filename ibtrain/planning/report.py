"""A plan as people read it."""

from ibtrain.planning.plan import Plan

_GIB = 2**30
_COLUMNS = ("sharding", "fits", "GiB", "of it", "s/step", "samples/s", "MFU", "GB received/step")


def describe(plan: Plan) -> str:
    """The plan in lines: what was planned for, a row for each choice, the one to take."""
    world = plan.nodes * plan.gpus_per_node
    nodes = "1 node" if plan.nodes == 1 else f"{plan.nodes} nodes"
    longest, typical = plan.longest, plan.typical
    lines = [
        f"{plan.recipe} on {world} {plan.device} ({nodes} of {plan.gpus_per_node}; "
        f"{plan.memory_bytes / _GIB:.1f} GiB each): {plan.micro_batches_per_step} micro-batch"
        f"{'' if plan.micro_batches_per_step == 1 else 'es'} of up to "
        f"{plan.samples_per_micro_batch} samples a step",
        f"model   {plan.parameters:,} parameters, {plan.trained_parameters:,} trained "
        f"({plan.architecture})",
        f"memory  when every sample is as long as it may be: {plan.visual_tokens} visual, "
        f"{longest.instruction} instruction and {longest.answer} answer tokens",
        f"time    when samples have {plan.visual_tokens} + {typical.instruction} + "
        f"{typical.answer}: {plan.flops_per_sample / 1e12:.2f} TFLOP each; reckoned from "
        "published rates and one measured host",
        "",
    ]
    rows = [_COLUMNS]
    for choice in plan.choices:
        memory = dict(choice.memory_bytes_per_gpu)
        total = memory.pop("total")
        largest = sorted(memory, key=lambda name: -memory[name])[:2]
        rows.append(
            (
                choice.sharding,
                "yes" if choice.fits else "no",
                f"{total / _GIB:.1f}",
                ", ".join(f"{name} {memory[name] / _GIB:.1f}" for name in largest),
                f"{choice.step_seconds:.3f}",
                f"{choice.samples_per_second:,.0f}",
                f"{choice.mfu:.0%}",
                f"{choice.traffic_bytes_per_step / 1e9:,.1f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        cells = [
            cell.ljust(width) if column in (0, 3) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.append("")
    if plan.chosen:
        lines.append(f"take sharding={plan.chosen}: {plan.because}")
    else:
        lines.append(plan.because)
    return "\n".join(lines)
