"""Generation that can only give one of some answers."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from ibtrain.evaluation.trie import Trie


class OnlyCandidates(LogitsProcessor):  # type: ignore[misc]
    """Leaves a row those tokens by which what it has so far goes on to a candidate, and the end
    token where it is one.

    Args:
        tries: for each prompt the trie of its candidates.
        beams: rows that transformers makes of each prompt.
        begin: how many tokens of a row come before the answer's own.
        end_id: the end token.
    """

    def __init__(self, tries: Sequence[Trie], beams: int, begin: int, end_id: int) -> None:
        self.children = {id(trie): trie.children() for trie in tries}
        self.tries = list(tries)
        self.ends = {id(trie): set(trie.ends.values()) for trie in tries}
        self.beams = beams
        self.begin = begin
        self.end_id = end_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [rows, V] with minus infinity for all other tokens."""
        allowed = torch.zeros_like(scores, dtype=torch.bool)
        for row, ids in enumerate(input_ids[:, self.begin :].tolist()):
            allowed[row, self._next(self.tries[row // self.beams], ids)] = True
        return scores.masked_fill(~allowed, float("-inf"))

    def _next(self, trie: Trie, ids: Sequence[int]) -> list[int]:
        children = self.children[id(trie)]
        node = 0
        for token in ids:
            # After its end a row is padded; one that left the trie is a beam of no probability.
            if token not in children[node]:
                return [self.end_id]
            node = children[node][token]
        return [*children[node], *([self.end_id] if node in self.ends[id(trie)] else [])]
