"""MDS shards: their index, the format, what a record is in them, and whether they are sound."""
