"""What a run is asked for: a recipe, with the data, the base and the tokenizers that it names."""

from dataclasses import dataclass
from pathlib import Path

from transformers import InstructBlipConfig

from ibtrain.config import Recipe, RecipeError
from ibtrain.data.mixture.reader import cache_directory
from ibtrain.data.mixture.shares import Mixture, resolve_mixture
from ibtrain.distributed.ranks import Ranks
from ibtrain.pretrained.base import base_config, base_directory, base_sources
from ibtrain.pretrained.configuration import check_vocabularies
from ibtrain.pretrained.fit import choose_sources
from ibtrain.pretrained.tensors import SafetensorsSource, TensorSource
from ibtrain.run_directory import TRAINABLE
from ibtrain.tokenization import InstructionTokenizer
from ibtrain.training.engine import sharding_config


@dataclass(frozen=True)
class Request:
    """A recipe with what it names: found, read and seen to fit together."""

    recipe: Recipe
    ranks: Ranks
    mixture: Mixture
    config: InstructBlipConfig
    tokenizer: InstructionTokenizer
    base: tuple[TensorSource, ...]
    """Where the base's weights come from, and those of new adapters."""
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
        config = base_config(recipe.model)
        _check_fit(recipe, config)
        directory = base_directory(recipe.model)
        tokenizer = InstructionTokenizer.from_directory(
            directory, recipe.data.max_instruction_tokens, recipe.data.max_answer_tokens
        )
        check_vocabularies(config, len(tokenizer.language), len(tokenizer.qformer), str(directory))
        base = base_sources(recipe.model, config, recipe.seed)
        request = cls(recipe, ranks, mixture, config, tokenizer, tuple(base), sharding)
        request.choose_sources(None)
        return request

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
        model, sources = self.recipe.model, [*self.base]
        if resumed is not None:
            sources.append(SafetensorsSource([resumed / TRAINABLE], f"checkpoint {resumed}"))
        return choose_sources(self.config, model.instruction_aware, sources, model.lora)


def _check_fit(recipe: Recipe, config: InstructBlipConfig) -> None:
    size = config.vision_config.image_size
    if recipe.data.image_size != size:
        raise RecipeError(
            f"data.image_size is {recipe.data.image_size}, the base's vision tower takes {size}: "
            f"set data.image_size={size}"
        )
