"""A trained model in the formats that other programs load, each proven by opening it again."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import ibtrain.torchvision_mend  # noqa: F401  (before transformers is imported)

if TYPE_CHECKING:
    from ibtrain.export.directory import ExportReport

Format = Literal["hf", "peft", "lavis"]


def export(
    model_path: Path,
    out: Path,
    to: Format,
    *,
    keep_adapter: bool = False,
    whole: bool = False,
    shard_bytes: int | None = None,
    evaluation: Path | None = None,
) -> "ExportReport":
    """Writes a model in one of the formats.

    Args:
        model_path: see `ibtrain.pretrained.finding.find_model`.
        out: the directory to make; it must not exist.
        to: `hf`, `peft` or `lavis`.
        keep_adapter: of `hf`: adapters beside the weights, not merged into them.
        whole: of `lavis`: every weight, and not only what was trained.
        shard_bytes: of `hf`: the size above which weights are split into several files.

        evaluation: a directory of `ibtrain evaluate`, whose scores stand in the model card.

    Raises:
        ValueError: when the model cannot be opened, an option belongs to another format, or `out`
            is there already.
        ExportError: when the export does not do what the model does.
        OSError: when the file system cannot take it.
    """
    # Imported late: each brings the libraries of its own format.
    from ibtrain.export.directory import check_out

    check_out(out)
    for name, given, belongs in (("keep-adapter", keep_adapter, "hf"), ("whole", whole, "lavis")):
        if given and to != belongs:
            raise ValueError(f"--{name} belongs to --to {belongs}; leave it out for --to {to}")
    if to == "peft":
        from ibtrain.export.peft import export_peft

        return export_peft(model_path, out, evaluation=evaluation)
    if to == "lavis":
        from ibtrain.export.lavis import export_lavis

        return export_lavis(model_path, out, whole=whole, evaluation=evaluation)
    from ibtrain.export.huggingface import export_huggingface
    from ibtrain.export.weight_shards import SHARD_BYTES

    return export_huggingface(
        model_path,
        out,
        shard_bytes=SHARD_BYTES if shard_bytes is None else shard_bytes,
        keep_adapter=keep_adapter,
        evaluation=evaluation,
    )
