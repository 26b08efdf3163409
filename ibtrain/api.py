"""The model as a Python object: what programs and notebooks use, and what stays as it is.

>>> from ibtrain import InstructBlip
>>> model = InstructBlip.load("my-model")
>>> model.ask("picture.jpg", "Question: What color is the circle? Short answer:", max_new_tokens=4)
'...'

Everything else in ibtrain may change from one version to the next.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import torch
from PIL.Image import Image

import ibtrain.torchvision_mend  # noqa: F401  (before transformers is imported)
from ibtrain.defaults import ASK_BEAMS, ASK_NEW_TOKENS, ASK_REPETITION_PENALTY
from ibtrain.evaluation.generation import DecodingSettings, generate
from ibtrain.evaluation.pictures import read_picture
from ibtrain.evaluation.ranking import (
    Length,
    Prior,
    RankingSettings,
    Scored,
    best_first,
    rank,
)
from ibtrain.pretrained.opening import OpenedModel, open_model, open_to_answer

Picture = str | PathLike[str] | bytes | Image
"""An image: the path of its file, the file's bytes, or one that Pillow opened."""


class InstructBlip:
    """A trained model that answers instructions about images.

    Open one with `InstructBlip.load`; one object is used by one thread at a time.

    >>> model = InstructBlip.load("my-model")
    >>> model
    InstructBlip('my-model', device='cpu')
    """

    def __init__(self, opened: OpenedModel, path: str = "") -> None:
        self._opened = opened
        self._path = path

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "InstructBlip":
        """Opens a model.

        >>> model = InstructBlip.load("my-model", device="cpu")

        Args:
            path: a run directory, one of its steps, an export, a directory in transformers'
                InstructBLIP or BLIP-2 format, or a recipe, whose base is meant.
            device: where it computes; default: the GPU where there is one, else the CPU.
            dtype: of its weights; default: bfloat16 on a GPU, float32 on the CPU.

        Raises:
            ValueError: it is no model, or not whole; says what was found and what to do.
        """
        if device is None and dtype is None:
            return cls(open_to_answer(Path(path)), str(path))
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype is None:
            dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
        return cls(open_model(Path(path), device, dtype), str(path))

    def ask(
        self,
        image: Picture | Sequence[Picture] | None,
        prompt: str,
        *,
        beams: int = ASK_BEAMS,
        max_new_tokens: int = ASK_NEW_TOKENS,
        min_new_tokens: int = 1,
        repetition_penalty: float = ASK_REPETITION_PENALTY,
        length_penalty: float = 1.0,
        sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 0.9,
        seed: int = 0,
    ) -> str:
        """The model's answer to an instruction; the defaults are those of the released models.

        >>> model = InstructBlip.load("my-model")
        >>> model.ask("picture.jpg", "Describe the image.", beams=1, max_new_tokens=8)
        '...'

        Several images are the frames of a video, in their order:

        >>> model.ask(["picture.jpg", "picture.jpg"], "What happens?", beams=1, max_new_tokens=8)
        '...'

        A sampled answer depends on the images, the prompt and the seed alone:

        >>> how = {"sample": True, "beams": 1, "max_new_tokens": 8, "seed": 7}
        >>> first = model.ask("picture.jpg", "What is it?", **how)
        >>> first == model.ask("picture.jpg", "What is it?", **how)
        True

        Args:
            image: the path of a file, its bytes, or an image of Pillow's; several of them in a
                list; or None for an instruction without an image.
            prompt: the instruction as it is; no prompt is put around it.
            beams: of beam search; 1 for the likeliest token each time.
            max_new_tokens: the longest answer.
            min_new_tokens: the shortest.
            repetition_penalty: above 1 makes tokens that the answer has already less likely.
            length_penalty: above 0 favours long answers, where there are several beams.
            sample: draw tokens instead of taking the likeliest.
            temperature: of drawing.
            top_p: draw among the likeliest tokens that have this probability together.
            seed: of drawing.

        Raises:
            FileNotFoundError: an image is not there.
            ValueError: an image is damaged or none, or a setting makes no sense.
        """
        settings = DecodingSettings(
            beams=beams,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            repetition_penalty=repetition_penalty,
            length_penalty=length_penalty,
            sample=sample,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )
        return generate(self._opened, [_pictures(image)], [prompt], settings)[0]

    def rank(
        self,
        image: Picture | Sequence[Picture] | None,
        prompt: str,
        candidates: Sequence[str] | Mapping[str, Sequence[str]],
        *,
        length: Length = "sum",
        prior: Prior = "none",
    ) -> list[Scored]:
        """The candidates, best first, by how likely the model holds each to be the answer.

        >>> model = InstructBlip.load("my-model")
        >>> ranked = model.rank("picture.jpg", "What color is the circle?", ["red", "blue"])
        >>> sorted(one.text for one in ranked)
        ['blue', 'red']
        >>> ranked[0].logprob >= ranked[1].logprob
        True

        Args:
            image: as for `ask`.
            prompt: the instruction as it is.
            candidates: answers; or, for each label, the texts that stand for it.
            length: what the sum of log-probabilities is divided by: nothing ("sum"), the number of
                "tokens", or that of "characters".
            prior: what is subtracted: nothing ("none"), or what the model holds of a candidate
                beside a blank "image", or with no content in the "prompt".

        Returns:
            Each with its `text`, its `logprob` (of all its tokens and the end of the answer) and
            the `score` that it is ranked by.

        Raises:
            FileNotFoundError: an image is not there.
            ValueError: an image is damaged or none, or there is no candidate.
        """
        settings = RankingSettings(length, prior)
        own = dict(candidates) if isinstance(candidates, Mapping) else list(candidates)
        scored = rank(self._opened, [_pictures(image)], [prompt], [own], settings)
        return best_first(scored[0])

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._opened.device

    def __repr__(self) -> str:
        return f"InstructBlip({self._path!r}, device={str(self.device)!r})"


def _pictures(image: object) -> list[bytes | Image]:
    """What `image` may be, as generation takes it."""
    if image is None:
        return []
    if isinstance(image, list | tuple):
        return [picture for one in image for picture in _pictures(one)]
    if isinstance(image, str | PathLike):
        return [read_picture(Path(image))]
    if isinstance(image, bytes | Image):
        return [image]
    raise ValueError(
        f"an image of type {type(image).__name__}; give the path of a file, its bytes, an image of "
        "Pillow's, or a list of them"
    )
