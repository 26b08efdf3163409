"""A trained model in the formats that people load."""

import ibtrain.torchvision_mend  # noqa: F401  (before transformers is imported)
