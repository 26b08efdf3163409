"""Questions whose answer is one of some choices, as the readers of several datasets need them.

In `details` of every ranked example, `choices` are what is ranked, in the source's order, and
`correct_choice` is the index of the right one, where it is public.
"""

from typing import Any

from ibtrain.data.instructions import format_options
from ibtrain.data.readers.fields import FieldError, Row, Unused
from ibtrain.data.records import Answer

MAXIMUM_CHOICES = 26  # as many as there are letters


def choices_of(row: Row, key: str = "choices") -> list[str]:
    """The choices of a question, 2 to 26 strings, without white space around them.

    Raises:
        FieldError: there are too few or too many, or one is empty.
    """
    choices = [choice.strip() for choice in row.texts(key)]
    if not 2 <= len(choices) <= MAXIMUM_CHOICES or not all(choices):
        raise FieldError(
            f"{row.origin}: {key!r} must be 2 to {MAXIMUM_CHOICES} strings that are not empty"
        )
    return choices


def correct_index(row: Row, key: str, count: int) -> int:
    """The index at `key`, of one of `count` things; FieldError where there is no such thing."""
    index = row.integer(key)
    if not 0 <= index < count:
        raise FieldError(f"{row.origin}: {key!r} is {index}, there are {count} choices")
    return index


def multiple_choice(
    row: Row, key: str, *, labelled: bool
) -> tuple[dict[str, str], tuple[Answer, ...], dict[str, Any]]:
    """(slots, answers, details) of a row with "question", "choices" and, at `key`, an index.

    Raises:
        FieldError: a value is wrong.
        Unused: the split is `labelled` and this row is not.
    """
    choices = choices_of(row)
    slots = {"question": row.text("question").strip(), "options": format_options(choices)}
    if not row.has(key):
        if labelled:
            raise Unused("no answer")
        return slots, (), {"choices": choices}
    correct = correct_index(row, key, len(choices))
    return slots, (Answer(choices[correct]),), {"choices": choices, "correct_choice": correct}
