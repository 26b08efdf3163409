"""A model found on disk: where its weights, configuration and tokenizers are, and if they fit."""

import ibtrain.torchvision_mend  # noqa: F401  (before transformers is imported)
