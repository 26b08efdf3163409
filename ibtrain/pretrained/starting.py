"""What a training starts from: the base that a recipe names, opened as far as it goes without
reading its weights' values.

`ibtrain train` and `ibtrain check` open it alike, so that what one refuses the other reports.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import InstructBlipConfig

from ibtrain.config import Recipe, RecipeError
from ibtrain.pretrained.base import base_config, base_directory, base_sources
from ibtrain.pretrained.configuration import check_vocabularies
from ibtrain.pretrained.fit import choose_sources
from ibtrain.pretrained.tensors import TensorSource
from ibtrain.tokenization import InstructionTokenizer


@dataclass(frozen=True)
class Start:
    """A base that a recipe can be trained on."""

    config: InstructBlipConfig
    tokenizer: InstructionTokenizer
    sources: tuple[TensorSource, ...]
    """Where the base's weights come from, and those of new adapters."""

    def choose_sources(
        self, recipe: Recipe, more: Sequence[TensorSource] = ()
    ) -> dict[str, TensorSource]:
        """For each parameter where its value is read from.

        Args:
            recipe: that it was opened for.
            more: sources that win over the base's, such as a checkpoint.

        Raises:
            ValueError: when weights are missing or do not fit.
        """
        model = recipe.model
        return choose_sources(
            self.config, model.instruction_aware, [*self.sources, *more], model.lora
        )


def open_start(recipe: Recipe) -> Start:
    """Opens the configuration, both tokenizers and the headers of all files of weights.

    Raises:
        ValueError: when one of them cannot be opened, they do not fit each other, or the recipe
            asks for what the base cannot do.
    """
    config = base_config(recipe.model)
    _check_fit(recipe, config)
    directory = base_directory(recipe.model)
    tokenizer = InstructionTokenizer.from_directory(
        directory, recipe.data.max_instruction_tokens, recipe.data.max_answer_tokens
    )
    check_vocabularies(config, len(tokenizer.language), len(tokenizer.qformer), str(directory))
    sources = base_sources(recipe.model, config, recipe.seed)
    start = Start(config, tokenizer, tuple(sources))
    start.choose_sources(recipe)
    return start


def _check_fit(recipe: Recipe, config: InstructBlipConfig) -> None:
    size = config.vision_config.image_size
    if recipe.data.image_size != size:
        raise RecipeError(
            f"data.image_size is {recipe.data.image_size}, the base's vision tower takes {size}: "
            f"set data.image_size={size}"
        )
    # Queries have no position of their own, so an instruction may take all there are.
    positions = config.qformer_config.max_position_embeddings
    longest = recipe.data.max_instruction_tokens
    if recipe.model.instruction_aware and longest > positions:
        raise RecipeError(
            f"data.max_instruction_tokens is {longest}, the base's Q-Former has {positions} "
            f"positions: set data.max_instruction_tokens={positions} or less"
        )
