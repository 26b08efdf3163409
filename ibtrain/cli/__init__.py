"""The command line: verbs that parse, call and print."""

from ibtrain.cli.main import main

__all__ = ["main"]
