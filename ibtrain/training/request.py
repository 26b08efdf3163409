"""What a run is asked for: a recipe, with the data, the base and the tokenizers that it names."""

from dataclasses import dataclass
from pathlib import Path

from ibtrain.config import Recipe
from ibtrain.data.mixture.reader import cache_directory
from ibtrain.data.mixture.shares import Mixture, resolve_mixture
from ibtrain.distributed.ranks import Ranks
from ibtrain.pretrained.starting import Start, open_start
from ibtrain.pretrained.tensors import SafetensorsSource, TensorSource
from ibtrain.run_directory import TRAINABLE
from ibtrain.training.engine import sharding_config


@dataclass(frozen=True)
class Request:
    """A recipe with what it names: found, read and seen to fit together."""

    recipe: Recipe
    ranks: Ranks
    mixture: Mixture
    start: Start
    sharding: str
    """Of this start; the recipe's, unless that is auto."""

    @classmethod
    def of(cls, recipe: Recipe, ranks: Ranks, sharding: str) -> "Request":
        """Finds it all; what can be refused before a model is built is refused here.

        Raises:
            ValueError: when the recipe, the base, the tokenizers or the data cannot be used.
        """
        sharded = recipe.model_copy(update={"sharding": sharding})
        sharding_config(sharded, ranks.world, ranks.local_world)
        mixture = resolve_mixture(
            recipe.data, recipe.training.global_batch, cache_directory(recipe)
        )
        return cls(recipe, ranks, mixture, open_start(recipe), sharding)

    @property
    def sharded(self) -> Recipe:
        """The recipe with the sharding of this start."""
        return self.recipe.model_copy(update={"sharding": self.sharding})

    def choose_sources(self, resumed: Path | None) -> dict[str, TensorSource]:
        """For each parameter where its value is read from: the base, or the checkpoint.

        Args:
            resumed: a step directory, whose weights win over the base's.

        Raises:
            ValueError: when weights are missing, damaged or do not fit.
        """
        if resumed is None:
            return self.start.choose_sources(self.recipe)
        checkpoint = SafetensorsSource([resumed / TRAINABLE], f"checkpoint {resumed}")
        return self.start.choose_sources(self.recipe, [checkpoint])
