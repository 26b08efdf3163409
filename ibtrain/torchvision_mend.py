"""Lets `import torchvision` work beside a CPU-only torch.

The registry has one torchvision wheel per version, linked against CUDA torch. Beside a CPU-only
torch its compiled library cannot be loaded, so the operators `torchvision::nms` and
`torchvision::qnms` are never declared, and torchvision's meta registrations, which name them, fail
at import. transformers (InstructBLIP's model and processor), peft and streaming all import
torchvision, so all of them fail with it. Declaring the two schemas is enough: image transforms
work, and the two operators still raise when somebody calls them.

Importing this module does the mend; it does nothing where the compiled library loads. Every package
here that imports transformers, peft or streaming imports this first.
"""

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: torch.library.Library | None = None  # the declaration lives as long as this object


def _compiled_library_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # no torchvision at all: nothing to mend
    for library in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            return False
    return hasattr(torch.ops.torchvision, "nms")


if not _compiled_library_loads():
    _declared = torch.library.Library("torchvision", "FRAGMENT")
    for _schema in _SCHEMAS.values():
        _declared.define(_schema)
