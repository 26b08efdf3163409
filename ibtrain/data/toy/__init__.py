"""The toy world: rendered images with annotations in the official layout of every dataset."""

from ibtrain.data.toy.layouts import write_toy

__all__ = ["write_toy"]
