"""The toy world: rendered images with annotations in the official layout of every dataset."""

from ibtrain.data.toy.places import PLACES, Place
from ibtrain.data.toy.write import write_toy

__all__ = ["PLACES", "Place", "write_toy"]
