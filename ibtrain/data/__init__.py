"""Raw dataset files -> examples -> records -> MDS shards -> mixture -> batches."""

import ibtrain.torchvision_mend  # noqa: F401  (before streaming or transformers is imported)
