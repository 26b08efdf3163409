"""Completion in the shell: `eval "$(register-python-argcomplete ibtrain)"`, by argcomplete."""

import argparse
import os
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parents[1]
_COMPLETED = {"recipe": "recipes", "dataset": "data/datasets"}
"""Arguments that name one of our YAML files, or a file of one's own."""


def complete(parser: argparse.ArgumentParser) -> None:
    """Answers the shell and ends, where it asks; does nothing otherwise."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    try:
        import argcomplete
    except ImportError:
        return  # the shell completes file names
    for action in _actions(parser):
        if action.dest in _COMPLETED:
            set_completer(action, _Names(_PACKAGE / _COMPLETED[action.dest]))
    argcomplete.autocomplete(parser)


def set_completer(action: argparse.Action, completer: Any) -> None:
    """Where argcomplete looks for what an argument may be."""
    action.completer = completer  # type: ignore[attr-defined]


class _Names:
    """The names of YAML files in a folder, and files of one's own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, prefix: str, **_: Any) -> list[str]:
        from argcomplete.completers import FilesCompleter

        shipped = [file.stem for file in self._folder.glob("*.yaml")]
        own: list[str] = FilesCompleter(allowednames=(".yaml", ".yml"))(prefix)
        return [*(name for name in shipped if name.startswith(prefix)), *own]


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The arguments of a parser and of all verbs below it."""
    found = list(parser._actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [one for verb in set(action.choices.values()) for one in _actions(verb)]
    return found
