"""The command line, `ernie-m`: one file for each command, and what they share."""

from .program import main

__all__ = ["main"]
