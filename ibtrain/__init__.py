"""ibtrain: instruction tuning of InstructBLIP under DeepSpeed, from MosaicML Streaming shards."""

__version__ = "0.1.0"
