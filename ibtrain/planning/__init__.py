"""Before a run: what it needs of a cluster's GPUs, how long a step takes, how to shard it."""
