"""Candidates ranked by how likely a model holds them to be the answer.

A candidate's score is the sum of the log-probabilities of its tokens and of the end token after
them, given image and prompt, as the paper ranks (arXiv 2305.06500, section 2.5; LAVIS
`predict_class` sums as well, without the end token for Vicuna, so that "red" outranks "red car"
whatever is seen). Probabilities are taken in fp32 from the model's logits; a score does not depend
on which candidates are scored together.

Shapes: B prompts, N rows of a tree's piece, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Literal, get_args

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from ibtrain.evaluation.candidates import Candidates, token_trie
from ibtrain.evaluation.generation import Picture, prompt_rows
from ibtrain.evaluation.trie import Piece, Trie
from ibtrain.model.candidates import PromptState, TreeRows
from ibtrain.model.language import answer_logits
from ibtrain.pretrained.opening import OpenedModel
from ibtrain.tokenization import InstructionTokenizer

Length = Literal["sum", "tokens", "characters"]
Prior = Literal["none", "image", "prompt"]

CONTENT_FREE = "N/A"
_LOGIT_ROWS = 1024  # whose logits are held at a time
_MEAN_COLOR = (123, 117, 104)  # CLIP's mean: all but zero once normalised


@dataclass(frozen=True)
class RankingSettings:
    """How log-probabilities become scores.

    `length`: "sum" leaves the sum as it is, "tokens" divides it by the number of tokens, end token
    included, "characters" by the number of characters.

    `prior`: what the model holds of a candidate without content is subtracted (contextual
    calibration, Zhao et al. 2021, arXiv 2102.09690, whose division of probabilities this is):
    "image" gives the same prompt with images of the mean colour, "prompt" gives `content_free` for
    the prompt beside the same images.

    `piece` is how many tokens of candidates are computed at a time for each prompt; scores do not
    depend on it.
    """

    length: Length = "sum"
    prior: Prior = "none"
    content_free: str = CONTENT_FREE
    piece: int = 256

    def __post_init__(self) -> None:
        if self.length not in get_args(Length):
            raise ValueError(f"length is {self.length!r}; it may be {_listed(get_args(Length))}")
        if self.prior not in get_args(Prior):
            raise ValueError(f"prior is {self.prior!r}; it may be {_listed(get_args(Prior))}")
        if self.piece < 1:
            raise ValueError(f"piece is {self.piece}; it must be at least 1")


@dataclass(frozen=True)
class Scored:
    """A candidate, or a label: its log-probability, and the score that it is ranked by.

    A label's are those of its texts' probabilities summed.
    """

    text: str
    logprob: float
    score: float


def rank(
    opened: OpenedModel,
    images: Sequence[Sequence[Picture]],
    prompts: Sequence[str],
    candidates: Sequence[Candidates],
    settings: RankingSettings = RankingSettings(),  # noqa: B008  (frozen)
) -> list[list[Scored]]:
    """Scores every prompt's candidates; best first is by `best_first`.

    Args:
        opened: the model.
        images: for each prompt its images, as `generation.generate` takes them.
        prompts: instructions.
        candidates: for each prompt its own. Where the same object is given for several, it is
            tokenized once.
        settings: how scores are made.

    Returns:
        For each prompt its candidates in the order given.

    Raises:
        ValueError: a list is empty, a candidate has no tokens or too many, one text stands for two
            labels, or as `generation.generate`.
    """
    if not len(images) == len(prompts) == len(candidates):
        raise ValueError(
            f"{len(prompts)} prompts come with {len(images)} lists of images and "
            f"{len(candidates)} of candidates"
        )
    sets = {id(one): labelled(one) for one in candidates}
    forms = {
        key: tuple(text for texts in own.values() for text in texts) for key, own in sets.items()
    }
    texts = [forms[id(one)] for one in candidates]
    sums = log_probabilities(opened, images, prompts, texts, settings.piece)
    corrections = _corrections(opened, images, prompts, texts, settings)
    ranked = []
    for one, own, correction in zip(candidates, sums, corrections, strict=True):
        scores = {
            text: (value - correction[text]) / _length(opened.tokenizer, text, settings.length)
            for text, value in own.items()
        }
        ranked.append(
            [
                Scored(label, _summed(own, forms_of), _summed(scores, forms_of))
                for label, forms_of in sets[id(one)].items()
            ]
            if isinstance(one, Mapping)
            else [Scored(text, own[text], scores[text]) for text in one]
        )
    return ranked


def best_first(scored: Sequence[Scored]) -> list[Scored]:
    """By descending score; equal ones in the order given."""
    return sorted(scored, key=lambda one: -one.score)


def labelled(candidates: Candidates) -> dict[str, tuple[str, ...]]:
    """The texts that stand for each label; a plain candidate stands for itself.

    Raises:
        ValueError: there are none, a label has none, or a text stands for two labels.
    """
    if not candidates:
        raise ValueError("the list of candidates is empty; give at least one")
    if not isinstance(candidates, Mapping):
        return {text: (text,) for text in candidates}
    owner: dict[str, str] = {}
    sets: dict[str, tuple[str, ...]] = {}
    for label, texts in candidates.items():
        if not texts:
            raise ValueError(f"no text stands for the label {label!r}; give at least one")
        for text in texts:
            if owner.setdefault(text, label) != label:
                raise ValueError(f"{text!r} stands for {owner[text]!r} and for {label!r}")
        sets[label] = tuple(dict.fromkeys(texts))
    return sets


@torch.inference_mode()
def log_probabilities(
    opened: OpenedModel,
    images: Sequence[Sequence[Picture]],
    prompts: Sequence[str],
    texts: Sequence[Sequence[str]],
    piece: int = 256,
) -> list[dict[str, float]]:
    """The summed log-probability of each text and of the end token after it, for each prompt.

    Raises:
        ValueError: as `rank`.
    """
    if not prompts:
        return []
    tries = [token_trie(opened.tokenizer, tuple(own)) for own in texts]
    language = opened.model.language_model
    state = PromptState(language, *prompt_rows(opened, images, prompts))
    cut = {id(trie): trie.pieces(piece) for trie, _ in tries}
    pieces = [cut[id(trie)] for trie, _ in tries]
    known = [[0.0] * len(trie) for trie, _ in tries]
    ends: list[dict[int, float]] = [{} for _ in tries]
    for turn in range(max(len(own) for own in pieces)):
        # A prompt that has no piece left goes through its last one again.
        own = [one[min(turn, len(one) - 1)] for one in pieces]
        rows = _rows([trie for trie, _ in tries], own, opened.device)
        logits = _TreeLogits(language, state.hidden(rows), opened.tokenizer.end_id)
        for index, one in enumerate(own):
            if turn < len(pieces[index]):
                _add(tries[index][0], one, logits.of(index, rows, one), known[index], ends[index])
    return [
        {text: end[trie.ends[sequence]] for text, sequence in sequences.items()}
        for (trie, sequences), end in zip(tries, ends, strict=True)
    ]


class _TreeLogits:
    """Log-probabilities of a piece's tokens and of the end after each of its rows."""

    def __init__(self, language: PreTrainedModel, hidden_BND: Tensor, end_id: int) -> None:
        self.language = language
        self.hidden_BND = hidden_BND
        self.end_id = end_id

    def of(self, index: int, rows: TreeRows, piece: Piece) -> tuple[list[float], list[float]]:
        """(of each row's token given its parent, of the end after each row); the root's token is
        given as 0.
        """
        count = len(piece.nodes)
        hidden_ND = self.hidden_BND[index, :count]
        parents_N = torch.tensor(piece.parents, device=hidden_ND.device)
        tokens_N = rows.token_ids_BN[index, :count]
        token_logprobs = torch.zeros(count, device=hidden_ND.device)
        end_logprobs = torch.zeros(count, device=hidden_ND.device)
        for begin in range(0, count, _LOGIT_ROWS):
            part = hidden_ND[begin : begin + _LOGIT_ROWS]
            logprobs_NV = answer_logits(self.language, part).log_softmax(-1)
            end_logprobs[begin : begin + len(part)] = logprobs_NV[:, self.end_id]
            of_part = (parents_N >= begin) & (parents_N < begin + len(part))
            token_logprobs[of_part] = logprobs_NV[parents_N[of_part] - begin, tokens_N[of_part]]
        token_logprobs[0] = 0.0
        return token_logprobs.tolist(), end_logprobs.tolist()


def _add(
    trie: Trie,
    piece: Piece,
    logprobs: tuple[list[float], list[float]],
    known: list[float],
    ends: dict[int, float],
) -> None:
    """Adds up along the branches; an ancestor's sum is known before its children's."""
    of_tokens, of_ends = logprobs
    for row in range(piece.own, len(piece.nodes)):
        node = piece.nodes[row]
        known[node] = known[trie.parents[node]] + of_tokens[row]
        ends[node] = known[node] + of_ends[row]


def _rows(tries: Sequence[Trie], pieces: Sequence[Piece], device: torch.device) -> TreeRows:
    """The pieces side by side, padded by rows that see their root and themselves."""
    longest = max(len(piece.nodes) for piece in pieces)
    ids: list[Tensor] = []
    depths: list[Tensor] = []
    sees: list[Tensor] = []
    same: dict[int, int] = {}
    for index, (trie, piece) in enumerate(zip(tries, pieces, strict=True)):
        if id(piece) in same:  # prompts that share their candidates share their pieces
            twin = same[id(piece)]
            ids.append(ids[twin])
            depths.append(depths[twin])
            sees.append(sees[twin])
            continue
        same[id(piece)] = index
        padding = longest - len(piece.nodes)
        ids.append(
            torch.tensor([max(trie.tokens[node], 0) for node in piece.nodes] + [0] * padding)
        )
        depths.append(torch.tensor([trie.depths[node] for node in piece.nodes] + [1] * padding))
        sees.append(_seen([*piece.parents, *([0] * padding)]))
    return TreeRows(
        torch.stack(ids).to(device), torch.stack(depths).to(device), torch.stack(sees).to(device)
    )


def _seen(parents: Sequence[int]) -> Tensor:
    """[N, N]: each row sees what its parent sees, and itself; parents come before children."""
    sees_NN = torch.eye(len(parents), dtype=torch.bool)
    for row in range(1, len(parents)):
        sees_NN[row] |= sees_NN[parents[row]]
    return sees_NN


def _corrections(
    opened: OpenedModel,
    images: Sequence[Sequence[Picture]],
    prompts: Sequence[str],
    texts: Sequence[tuple[str, ...]],
    settings: RankingSettings,
) -> list[Mapping[str, float]]:
    """What is subtracted from each text's log-probability, for each prompt."""
    if settings.prior == "none":
        return [dict.fromkeys(own, 0.0) for own in texts]
    if settings.prior == "prompt":
        prompts = [settings.content_free] * len(prompts)
    else:
        blank = Image.new("RGB", (opened.image_size, opened.image_size), _MEAN_COLOR)
        images = [[blank] * len(own) for own in images]
    return list(log_probabilities(opened, images, prompts, texts, settings.piece))


def _length(tokenizer: InstructionTokenizer, text: str, length: Length) -> int:
    if length == "sum":
        return 1
    return len(tokenizer.answer(text)) if length == "tokens" else len(text)


def _summed(values: Mapping[str, float], texts: Sequence[str]) -> float:
    """log of the sum of the texts' exponentials."""
    most = max(values[text] for text in texts)
    return most + log(sum(exp(values[text] - most) for text in texts))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
