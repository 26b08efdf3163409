"""The training loop, DeepSpeed as its engine, checkpoints, telemetry."""

import ibtrain.torchvision_mend  # noqa: F401  (before transformers or streaming is imported)
