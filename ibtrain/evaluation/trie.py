"""Sequences of tokens as a tree in which those that begin alike share their beginning."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Piece:
    """Some nodes of a trie with all their ancestors, which make a tree of its own.

    `nodes[row]` is the trie's node; row 0 is the root. The rows from `own` on are the piece's,
    those before are ancestors that another piece has scored.
    """

    nodes: tuple[int, ...]
    parents: tuple[int, ...]
    """Row of the parent; the root's is itself."""
    own: int


@dataclass
class Trie:
    """Nodes in depth-first order; node 0 is the root and stands for no token."""

    tokens: list[int] = field(default_factory=lambda: [-1])
    parents: list[int] = field(default_factory=lambda: [0])
    depths: list[int] = field(default_factory=lambda: [0])
    ends: dict[tuple[int, ...], int] = field(default_factory=dict)
    """The node of each sequence's last token."""

    @classmethod
    def of(cls, sequences: Iterable[Sequence[int]]) -> "Trie":
        """The trie of sequences, each of at least one token; equal ones are one."""
        trie = cls()
        path: list[int] = []
        before: tuple[int, ...] = ()
        # Sorted, a sequence follows those that it shares most with: nodes come depth first.
        for sequence in sorted({tuple(one) for one in sequences}):
            shared = 0
            while shared < min(len(before), len(sequence)) and before[shared] == sequence[shared]:
                shared += 1
            del path[shared:]
            for token in sequence[shared:]:
                trie.parents.append(path[-1] if path else 0)
                trie.depths.append(len(path) + 1)
                path.append(len(trie.tokens))
                trie.tokens.append(token)
            trie.ends[sequence] = path[-1]
            before = sequence
        return trie

    def __len__(self) -> int:
        return len(self.tokens)

    def pieces(self, rows: int) -> list[Piece]:
        """The trie cut into pieces of at most `rows` nodes of their own.

        In depth-first order a node's ancestors lie in its piece or are those of the piece's first.
        """
        pieces = []
        for begin in range(1, len(self), rows):
            nodes: list[int] = []
            node = begin
            while node:
                node = self.parents[node]
                nodes.append(node)
            nodes.reverse()
            own = len(nodes)
            nodes += range(begin, min(begin + rows, len(self)))
            row_of = {node: row for row, node in enumerate(nodes)}
            parents = tuple(row_of[self.parents[node]] for node in nodes)
            pieces.append(Piece(tuple(nodes), parents, own))
        return pieces

    def children(self) -> list[dict[int, int]]:
        """For each node its children by their token."""
        found: list[dict[int, int]] = [{} for _ in self.tokens]
        for node in range(1, len(self)):
            found[self.parents[node]][self.tokens[node]] = node
        return found
