"""ibtrain: instruction tuning of InstructBLIP under DeepSpeed, from MosaicML Streaming shards.

>>> from ibtrain import InstructBlip
"""

from importlib import import_module

__version__ = "0.1.0"
__all__ = ["InstructBlip", "__version__"]


def __getattr__(name: str) -> object:
    """The public classes, imported when they are first asked for: torch takes seconds."""
    if name == "InstructBlip":
        # Not an import statement: what all rooms import must not itself stand above them.
        return getattr(import_module("ibtrain.api"), name)
    raise AttributeError(f"module 'ibtrain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "InstructBlip"]
