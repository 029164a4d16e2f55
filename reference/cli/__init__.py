"""The `ernie-m` command line: one file per command, and the code that the commands share."""

from .program import main

__all__ = ["main"]
