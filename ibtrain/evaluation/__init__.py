"""Answers from a model: generation, the held-out benchmarks, their metrics and reports."""

import ibtrain.torchvision_mend  # noqa: F401  (before transformers is imported)
