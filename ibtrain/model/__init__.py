"""InstructBLIP: vision tower, Q-Former and projection of our own, transformers' language models."""

import ibtrain.torchvision_mend  # noqa: F401  (before transformers is imported)
