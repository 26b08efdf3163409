"""Answers on disk while they are being made: what is there is never computed again.

DIR holds request.json and answers.*.jsonl, a file for each rank of each attempt. Work is dealt in
batches, whose composition depends on nothing but their size, and a batch is written at once; one
that was cut off is answered again as a whole. So the numbers are the same, whoever computed what.
"""

import hashlib
import json
import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ibtrain.evaluation.answered import Answered
from ibtrain.files import sync, write_whole

logger = logging.getLogger(__name__)
_REQUEST = "request.json"
_HASH = 12


class AnswerStore:
    """The answers to one request.

    Args:
        directory: holds the answers to any number of requests, each in a folder of its own.
        name: of the result.
        request: all that the answers depend on; plain values.
    """

    def __init__(self, directory: Path, name: str, request: dict[str, Any]) -> None:
        text = json.dumps(request, sort_keys=True)
        self.request = text
        self.directory = directory / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:_HASH]}"

    def begin(self) -> int:
        """Makes the folder; the number of this attempt. For one process alone."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if not (self.directory / _REQUEST).is_file():
            write_whole(self.directory / _REQUEST, self.request + "\n")
        return 1 + max((int(path.name.split(".")[1]) for path in self._files()), default=0)

    def done(self, sizes: Sequence[int]) -> dict[int, list[Answered]]:
        """The batches that are answered as a whole, each in the order of its samples.

        Args:
            sizes: of every batch.
        """
        found: dict[int, dict[int, Answered]] = defaultdict(dict)
        for path in self._files():
            for line in path.read_bytes().split(b"\n"):
                try:
                    row = json.loads(line)
                    batch = row.pop("batch")
                    answered = Answered.from_json(row)
                except (ValueError, TypeError, AttributeError, KeyError):
                    continue  # cut off; its batch is answered again
                found[batch][answered.index] = answered
        return {
            batch: [rows[index] for index in sorted(rows)]
            for batch, rows in found.items()
            if 0 <= batch < len(sizes) and len(rows) == sizes[batch]
        }

    def writer(self, attempt: int, rank: int) -> "AnswerWriter":
        """Where one rank of an attempt writes."""
        return AnswerWriter(self.directory / f"answers.{attempt}.{rank}.jsonl")

    def _files(self) -> list[Path]:
        named = self.directory.glob("answers.*.*.jsonl")
        return sorted(path for path in named if path.name.split(".")[1].isdigit())


class AnswerWriter:
    """Appends batches to a file of one process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, batch: int, answered: Sequence[Answered]) -> None:
        """Writes a batch durably."""
        lines = "".join(
            json.dumps({"batch": batch, **one.as_json()}, ensure_ascii=False) + "\n"
            for one in answered
        )
        new = not self.path.exists()
        with self.path.open("ab") as file:
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync(self.path.parent)
