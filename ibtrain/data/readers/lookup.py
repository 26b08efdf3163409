"""What a second annotation file says of each id: answers of questions, text read off images."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ibtrain.data.instructions import MAXIMUM_OCR_TOKENS
from ibtrain.data.readers.fields import FieldError, Rejected, Row
from ibtrain.data.readers.streams import entries_under


class Lookup:
    """Values by id, each held as JSON, so that half a million answers fit in 200 MB.

    Args:
        entries: (origin, annotation) pairs; the first of several with the same id counts.
            `left_out` tells of those that say something else, and of those without an id.
        key: of the id in an annotation.
        pick: what is kept of an annotation, as plain values. A FieldError is told to whoever asks
            for the id; an annotation whose id cannot be told is never asked for.
    """

    def __init__(
        self, entries: Iterable[tuple[str, object]], key: str, pick: Callable[[Row], Any]
    ) -> None:
        self._found: dict[str, bytes] = {}
        self._faults: dict[str, str] = {}
        self.left_out: list[Rejected] = []
        for origin, value in entries:
            try:
                row = Row(value, origin)
                identity = row.identity(key)
            except FieldError as error:
                self.left_out.append(Rejected(origin, str(error)))
                continue
            try:
                kept = json.dumps(pick(row), separators=(",", ":")).encode()
            except FieldError as error:
                if identity not in self._found:
                    self._faults.setdefault(identity, str(error))
                continue
            if identity in self._faults:
                continue
            if self._found.setdefault(identity, kept) != kept:
                reason = f"{origin}: {key} {identity} came before with other values, which count"
                self.left_out.append(Rejected(identity, reason))

    def get(self, identity: str) -> Any:
        """The value, or None where there is none; FieldError where the annotation is damaged."""
        if identity in self._faults:
            raise FieldError(self._faults[identity])
        found = self._found.get(identity)
        return None if found is None else json.loads(found)


def ocr_tokens(path: Path) -> Lookup:
    """Tokens by image id of a file in the form of TextVQA's Rosetta files: an object whose list
    `data` has {"image_id", "ocr_tokens"}. Blank tokens are left out; no more are kept than shown.

    Raises:
        ValueError: naming the file, where it is damaged or holds something else.
    """

    def pick(row: Row) -> list[str]:
        tokens = [" ".join(token.split()) for token in row.texts("ocr_tokens")]
        return [token for token in tokens if token][:MAXIMUM_OCR_TOKENS]

    return Lookup(entries_under(path, "data"), "image_id", pick)
